package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// savedConfig is a file that people keep: its comments must outlive what commands do.
const savedConfig = `# The gateway of the branch office. Ask Ann before you change it.
zones:
  external: {interfaces: [eth0]}   # leased line
  internal: {interfaces: [eth3]}
  dmz:      {interfaces: [eth2]}

nat:
  masquerade:
    - {from: internal, to: external}
  forwards:
    # the terminal server
    - {name: rdp, in: external, proto: tcp, port: 3389, to: "192.168.3.200:3389"}

    # Bob's
    - name: dns
      in: external
      proto: udp
      port: 53            # and back
      to: 192.168.3.200:5353
mirrors:
  - name: ids
    zones: [internal]
    targets:
      - {via: 192.168.4.2}
# end
`

// fileNote is what status says of the file.
type fileNote struct {
	Path    string
	Differs bool
	Note    string
}

func (g *gateway) fileNote() *fileNote {
	g.t.Helper()
	var s struct{ File *fileNote }
	if err := json.Unmarshal([]byte(g.must("status", "--json").stdout), &s); err != nil {
		g.t.Fatal(err)
	}
	return s.File
}

// isSaved fails unless the file says what is in force, and status says so.
func (g *gateway) isSaved(when, file string) {
	g.t.Helper()
	if note := g.fileNote(); note == nil || note.Path != file || note.Differs || note.Note != "" {
		g.t.Errorf("%s: status says of the file: %+v", when, note)
	}
	text, err := os.ReadFile(file)
	if shown := g.must("config", "show").stdout; err != nil || string(text) != shown {
		g.t.Errorf("%s: %v, in force is\n%s\nthe file says\n%s", when, err, shown, text)
	}
}

// lists are all rules and mirrors, without what they have counted.
func (g *gateway) lists() string {
	g.t.Helper()
	var all strings.Builder
	for _, what := range []string{"forward", "masquerade", "mirror"} {
		var list []map[string]any
		if err := json.Unmarshal([]byte(g.must(what, "list", "--json").stdout), &list); err != nil {
			g.t.Fatal(err)
		}
		for _, item := range list {
			delete(item, "flows")
			delete(item, "last")
			if what == "mirror" {
				item = map[string]any{"name": item["name"], "zones": item["zones"]}
			}
			text, err := json.Marshal(item)
			if err != nil {
				g.t.Fatal(err)
			}
			all.WriteString(what + " " + string(text) + "\n")
		}
	}
	return all.String()
}

// What commands change and save is in the file as well, between its comments: everything
// taken away and the file applied, all is as it was.
func TestSaveAndApply(t *testing.T) {
	t.Parallel()
	g := newGateLab(t)
	file := g.file("tapgate.yaml", savedConfig)
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	g.must("apply", "-f", file)
	g.isSaved("applied", file)

	want := savedConfig
	for _, c := range []struct{ args, old, new string }{
		{
			"forward add web --in external --proto tcp --port 80 --to 192.168.3.201:80 --save", "5353\n",
			"5353\n    - {name: web, in: external, proto: tcp, port: 80, to: \"192.168.3.201:80\"}\n",
		},
		{"mirror add ids --l2 eth2 --save", "4.2}\n", "4.2}\n      - {l2: eth2}\n"},
		{"mirror add rec --zone internal --via 192.168.4.2 --save", "# end\n", "  - name: rec\n    zones: [internal]\n    targets:\n      - {via: 192.168.4.2}\n# end\n"},
		{"forward del rdp --save", "    - {name: rdp, in: external, proto: tcp, port: 3389, to: \"192.168.3.200:3389\"}\n", ""},
		{"masquerade del internal-external --save", "    - {from: internal, to: external}\n", ""},
		{"masquerade add all --from internal --to external --ipv6 --save", "masquerade:\n", "masquerade:\n    - {name: all, from: internal, to: external, ipv6: true}\n"},
	} {
		g.says(g.must(strings.Fields(c.args)...), "saved in "+file)
		if want = strings.Replace(want, c.old, c.new, 1); g.must("config", "show").stdout != want {
			t.Errorf("%s: in force is\n%s\nwant\n%s", c.args, g.must("config", "show").stdout, want)
		}
		g.isSaved(c.args, file)
	}
	if is, err := os.Stat(file); err != nil || is.Mode() != 0o640 {
		t.Errorf("%v: mode %v", err, is.Mode())
	}
	before, lists := g.status(), g.lists()
	g.must("detach")
	g.must("apply", "-f", file)
	g.isSaved("applied again", file)
	if after := g.lists(); after != lists {
		t.Errorf("before:\n%s\nafter:\n%s", lists, after)
	}
	if s := g.status(); len(s.Members) != len(before.Members) || len(s.Problems) > 0 {
		t.Errorf("%+v", s)
	}
}

// Where the file and what is in force differ, status says so, and nobody's work is lost.
func TestSaveKeepsOthersWork(t *testing.T) {
	t.Parallel()
	g := newGateLab(t)
	g.apply(savedConfig) // from standard input
	if note := g.fileNote(); note != nil {
		t.Errorf("there is a file: %+v", note)
	}
	if r := g.tapgate("mirror", "del", "ids", "--save"); r.code != 2 || !strings.Contains(r.stderr, "tapgate config save FILE") || len(g.status().Mirrors) != 1 {
		t.Errorf("no file: %s", r)
	}
	file := filepath.Join(g.Dir, "tapgate.yaml")
	g.must("config", "save", file)
	g.isSaved("config save", file)

	// By a command that does not save, and by what is known to others only.
	g.must("forward", "del", "rdp")
	g.says(g.must("status"), "it lacks what commands have changed since")
	g.must("config", "save")
	g.isSaved("saved later", file)
	edited := strings.Replace(g.must("config", "show").stdout, "port: 53 ", "port: 54 ", 1)
	g.file("tapgate.yaml", edited)
	g.says(g.must("status"), "it differs from what is in force")
	serial := g.status().Serial
	for _, c := range []string{"mirror del ids --save", "config save"} {
		if r := g.tapgate(strings.Fields(c)...); r.code != 1 || !strings.Contains(r.stderr, "was not made from "+file) {
			t.Errorf("%s of a file that was changed: %s", c, r)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != edited || g.status().Serial != serial {
		t.Errorf("%v: refused, but done: %s", err, text)
	}

	// Applied and taken back, also by itself, it is the file that differs.
	g.must("apply", "-f", file, "--confirm", "1h")
	g.isSaved("what waits", file)
	if r := g.tapgate("config", "save"); r.code != 1 || !strings.Contains(r.stderr, "waits for confirmation") {
		t.Errorf("saved what waits: %s", r)
	}
	g.pastDeadlineNow()
	if note := g.fileNote(); note == nil || !note.Differs || note.Path != file {
		t.Errorf("gone back by itself: %+v", note)
	}
	g.must("rollback") // clears up
	g.must("apply", "-f", file)
	g.isSaved("applied", file)
	other := g.file("other.yaml", savedConfig)
	g.must("apply", "-f", other)
	g.isSaved("another file", other)
	g.must("rollback")
	g.isSaved("back to the file before", file)

	// It goes with what is in force: through an upgrade, and what the agent does.
	g.must("upgrade")
	a := g.agent(nil, "--listen", "")
	serial = g.status().Serial
	g.ip(g.Gateway, "addr add 203.0.113.77/24 dev eth0")
	g.ip(g.Gateway, "addr add 192.168.33.1/24 dev eth3")
	eventually(t, func() string {
		if g.status().Serial == serial {
			return "the agent has not applied it again"
		}
		return ""
	})
	a.end()
	g.isSaved("applied again by the agent", file)

	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	g.says(g.must("status"), "it is gone")
	g.must("config", "save")
	g.isSaved("written again", file)
}
