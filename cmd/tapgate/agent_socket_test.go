package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What cannot be a socket, or whose group is none, is told before anything is done; what
// is there and no socket stays.
func TestAgentSocketRefused(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "nowhere"), link); err != nil {
		t.Fatal(err)
	}
	free := "unix:" + filepath.Join(dir, "s")
	for _, c := range []struct{ listen, group, want string }{
		{"unix:metrics.sock", "", "the path must begin with /"},
		{"unix:", "", "the path must begin with /"},
		{"unix:/run/" + strings.Repeat("x", 103), "", "the path of a socket has 107 bytes at most"},
		{"unix:" + dir + "/none/s", "", "there is no folder " + dir + "/none"},
		{"unix:" + file, "", "something else, which is left as it is"},
		{"unix:" + dir, "", "something else, which is left as it is"},
		{"unix:" + link, "", "something else, which is left as it is"},
		{free, "no-such-group", `--listen-group "no-such-group": there is no such group`},
		{free, "-1", "there is no such group"},
		{"127.0.0.1:9435", "root", "--listen-group is for --listen unix:PATH"},
		{"", "root", "--listen-group is for --listen unix:PATH"},
	} {
		f := &fake{}
		got := call(f, "", "agent", "--listen", c.listen, "--listen-group", c.group)
		if got.code != exitUsage || !strings.Contains(got.errs, c.want) || len(f.calls) > 0 {
			t.Errorf("--listen %s --listen-group %s: %+v, %v", c.listen, c.group, got, f.calls)
		}
	}
	if raw, err := os.ReadFile(file); err != nil || string(raw) != "mine" {
		t.Errorf("the file: %q, %v", raw, err)
	}
}
