package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tapgate/loader"
)

// saveConfig has comments that must stay.
const saveConfig = "# ours\n" + zonesText + "nat:\n  forwards:\n    - " + forwardA + "   # Bob's\n# the end\n"

// saved is saveConfig after addNew.
var saved = strings.Replace(saveConfig, "# Bob's\n", "# Bob's\n    - "+newItem+"\n", 1)

const addNew = "forward add new --in external --proto tcp --port 80 --to 192.168.3.2:80"

// applied gives a file with this text, and a gateway on which it was applied.
func applied(t *testing.T, text string) (string, *fake) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tapgate.yaml")
	writeText(t, file, text)
	return file, &fake{source: text, file: loader.SourceFile{Path: file, Sum: sumOf([]byte(text))}, result: done}
}

func writeText(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// holds says that a file has this text and nothing was left beside it.
func holds(t *testing.T, what, file, want string) {
	t.Helper()
	got, err := os.ReadFile(file)
	if err != nil || string(got) != want {
		t.Errorf("%s: %v, the file says\n%s\nwant\n%s", what, err, got, want)
	}
	entries, _ := os.ReadDir(filepath.Dir(file))
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".new") {
			t.Errorf("%s: %s was left", what, e.Name())
		}
	}
}

func TestSave(t *testing.T) {
	file, f := applied(t, saveConfig)
	if err := errors.Join(os.Chmod(file, 0o606), os.Chown(file, 12, 34)); err != nil {
		t.Fatal(err)
	}
	got := call(f, "", strings.Fields(addNew+" --save")...)
	if got.code != 0 || got.stdout != "attached to eth3\nsaved in "+file+"\n" || f.gatewayCfg == nil || f.gatewayCfg.Source != saved {
		t.Fatalf("%+v", got)
	}
	holds(t, "add", file, saved)
	if want := (loader.SourceFile{Path: file, Sum: sumOf([]byte(saved))}); f.file != want || f.gatewayCfg.File.Path != file {
		t.Errorf("noted %+v and %+v, want %+v", f.gatewayCfg.File, f.file, want)
	}
	var is unix.Stat_t
	if err := unix.Stat(file, &is); err != nil || is.Mode&0o777 != 0o606 || is.Uid != 12 || is.Gid != 34 {
		t.Errorf("%v: mode %o, owner %d:%d", err, is.Mode, is.Uid, is.Gid)
	}

	// And away again, whatever the way.
	f.source = f.gatewayCfg.Source
	if got := call(f, "", "forward", "del", "new", "--save"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	holds(t, "del", file, saveConfig)
	f.source = f.gatewayCfg.Source
	if got := call(f, "", "forward", "del", "new", "--save"); got.code != 0 || !strings.Contains(got.stderr, "already so: there is no forward") {
		t.Errorf("%+v", got)
	}
}

// Without --save the file is left alone, and with it what earlier commands did is saved too.
func TestSaveLater(t *testing.T) {
	file, f := applied(t, saveConfig)
	if got := call(f, "", strings.Fields(addNew)...); got.code != 0 || strings.Contains(got.stdout, "saved") {
		t.Fatalf("%+v", got)
	}
	holds(t, "not saved", file, saveConfig)
	f.source = f.gatewayCfg.Source
	for what, args := range map[string]string{"the same again": addNew + " --save", "config save": "config save"} {
		writeText(t, file, saveConfig)
		f.file.Sum = sumOf([]byte(saveConfig))
		f.gatewayCfg = nil
		if got := call(f, "", strings.Fields(args)...); got.code != 0 || got.stdout != "saved in "+file+"\n" || f.gatewayCfg != nil {
			t.Fatalf("%s: %+v", what, got)
		}
		holds(t, what, file, saved)
	}
	if got := call(f, "", "config", "save"); got.code != 0 || got.stdout != "" || !strings.Contains(got.stderr, "already so: "+file+" says what is in force") {
		t.Errorf("%+v", got)
	}
	if got := call(f, "", "forward", "del", "a", "--save"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	holds(t, "deleted", file, strings.Replace(saved, "    - "+forwardA+"   # Bob's\n", "", 1))
}

// A link leads to the file that is written, and stays a link.
func TestSaveThroughLink(t *testing.T) {
	file, f := applied(t, saveConfig)
	link := filepath.Join(t.TempDir(), "link.yaml")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	f.file.Path = link
	if got := call(f, "", strings.Fields(addNew+" --save")...); got.code != 0 || got.stdout != "attached to eth3\nsaved in "+link+"\n" {
		t.Fatalf("%+v", got)
	}
	holds(t, "link", file, saved)
	if is, err := os.Lstat(link); err != nil || is.Mode()&os.ModeSymlink == 0 {
		t.Errorf("%v: the link is %v", err, is.Mode())
	}
}

func TestSaveRefused(t *testing.T) {
	edited := strings.Replace(saveConfig, "port: 1,", "port: 3,", 1)
	fits := strings.Replace(saveConfig, "# Bob's", "# no longer Bob's", 1)
	for _, c := range []struct {
		name string
		file string // its text when it is to be saved; "-" for none
		f    func(*fake)
		want string // of the refusal, or the text of the file if it is none
		code int
	}{
		{"changed and not applied", edited, nil, "was not made from", exitFailed},
		{"changed, what it was made from is not known", edited, func(f *fake) { f.file.Sum = "" }, "was not made from", exitFailed},
		{"broken", "zones: [", nil, "is not understood", exitFailed},
		{"only comments changed", fits, nil, strings.Replace(saved, "# Bob's", "# no longer Bob's", 1), 0},
		{"marked by an editor", "\ufeff" + saveConfig, nil, "\ufeff" + saved, 0},
		{"marked, other comments", "\ufeff" + fits, nil, "\ufeff" + strings.Replace(saved, "# Bob's", "# no longer Bob's", 1), 0},
		{"gone", "-", nil, saved, 0},
		{"has it already", saved, nil, saved, 0},
		{"alias", "x: &f\n", nil, "is not understood", exitFailed},
		{"no file", saveConfig, func(f *fake) { f.file = loader.SourceFile{} }, "tapgate config save FILE", exitUsage},
		{"a change waits", saveConfig, func(f *fake) { f.pending = &loader.Pending{} }, "waits for confirmation", exitFailed},
		{"refused by the loader", saveConfig, func(f *fake) { f.applyErr = errors.New("no") }, "no", exitFailed},
	} {
		file, f := applied(t, saveConfig)
		if c.file == "-" {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		} else {
			writeText(t, file, c.file)
		}
		if c.f != nil {
			c.f(f)
		}
		got := call(f, "", strings.Fields(addNew+" --save")...)
		if got.code != c.code || c.code != 0 && (!strings.Contains(got.errs, c.want) || f.gatewayCfg != nil && f.applyErr == nil) {
			t.Errorf("%s: %+v, put in force %v", c.name, got, f.gatewayCfg)
		}
		if c.code == 0 {
			holds(t, c.name, file, c.want)
		} else {
			holds(t, c.name, file, c.file)
		}
	}
}

// What somebody writes while the change is made is not written over.
func TestSaveMeetsAnEditor(t *testing.T) {
	file, f := applied(t, saveConfig)
	f.onApply = func() { writeText(t, file, "# mine\n") }
	got := call(f, "", strings.Fields(addNew+" --save")...)
	if got.code != exitFailed || !strings.Contains(got.errs, "in force, but not saved in "+file) || f.file.Sum != sumOf([]byte(saveConfig)) {
		t.Errorf("%+v", got)
	}
	holds(t, "written meanwhile", file, "# mine\n")
}

func TestConfigSave(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "other.yaml")
	writeText(t, other, "# somebody's\n"+zonesText)
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	file, f := applied(t, saveConfig)
	t.Chdir(dir)
	for _, c := range []struct {
		args, want string // file that holds saveConfig, or what is said
		code       int
	}{
		{"new.yaml", "new.yaml", 0},
		{"other.yaml", "was not made from " + other, exitFailed},
		{"other.yaml --force", "other.yaml", 0},
		{"", "other.yaml", 0}, // from now on
		{"fifo", "is not a file", exitFailed},
		{".", "is not a file", exitFailed},
		{"no/such/folder", "no such file or directory", exitFailed},
		{"-", "config show", exitUsage},
		{"a b", "one FILE", exitUsage},
	} {
		got := call(f, "", strings.Fields("config save "+c.args)...)
		if got.code != c.code || c.code != 0 && !strings.Contains(got.errs, c.want) {
			t.Errorf("config save %s: %+v", c.args, got)
		}
		if c.code == 0 {
			holds(t, c.args, filepath.Join(dir, c.want), saveConfig)
			if f.file.Path != filepath.Join(dir, c.want) {
				t.Errorf("config save %s: noted %+v", c.args, f.file)
			}
		}
	}
	holds(t, "not meant", file, saveConfig)
}

// The file of what was applied is known, if it can be found again.
func TestAppliedFile(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	writeText(t, "a.yaml", saveConfig)
	writeText(t, "b.yaml", zonesText)
	writeText(t, "confirmed.yaml", saved)
	a, b := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")
	for _, c := range []struct {
		args string
		want loader.SourceFile
	}{
		{"apply -f a.yaml", loader.SourceFile{Path: a, Sum: sumOf([]byte(saveConfig))}},
		{"apply -f -", loader.SourceFile{}},
		{"attach --internal eth3 --dmz eth2 --sensor 192.168.4.2", loader.SourceFile{}},
		{"apply --confirmed --state-dir . -f " + b, loader.SourceFile{Path: b}},
		{"apply --confirmed --state-dir . -f none.yaml", loader.SourceFile{}},
	} {
		f := &fake{result: done, source: saved} // which is kept as confirmed.yaml
		got := call(f, saveConfig, strings.Fields(c.args)...)
		if got.code != 0 || f.cfg == nil || f.cfg.File != c.want {
			t.Errorf("%s: %+v, file %+v, want %+v", c.args, got, f.cfg, c.want)
		}
	}
	writeText(t, "b.yaml", "# the same\n"+saved)
	f := &fake{result: done, source: saved}
	if got := call(f, "", "apply", "--confirmed", "--state-dir", ".", "-f", b); got.code != 0 || f.cfg.File.Sum != sumOf([]byte("# the same\n"+saved)) {
		t.Errorf("%+v, file %+v", got, f.cfg.File)
	}
	f = &fake{source: saved, previous: saveConfig, prevFile: loader.SourceFile{Path: a, Sum: "x"}, result: done}
	if got := call(f, "", "rollback"); got.code != 0 || f.gatewayCfg.File != f.prevFile {
		t.Errorf("rollback: %+v, file %+v", got, f.gatewayCfg)
	}
}

func TestStatusTellsOfTheFile(t *testing.T) {
	for _, c := range []struct{ name, file, source, want string }{
		{"as applied", saveConfig, saveConfig, ""},
		{"other comments", strings.Replace(saveConfig, "ours", "theirs", 1), saveConfig, ""},
		{"commands", saveConfig, saved, "it lacks what commands have changed since; to write that too: tapgate config save"},
		{"edited", strings.Replace(saveConfig, "port: 1,", "port: 3,", 1), saveConfig, "it differs from what is in force, which was not made from it as it is now; what it would change: tapgate apply --dry-run -f /"},
		{"broken", "zones: [", saveConfig, "it is not understood: tapgate.yaml:1:8: "},
		{"gone", "-", saveConfig, "it is gone; to write what is in force: tapgate config save"},
	} {
		file, f := applied(t, saveConfig)
		f.source, f.status = c.source, exampleStatus()
		writeText(t, file, c.file)
		if c.file == "-" {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
		got := call(f, "", "status")
		lines := strings.Split(got.stdout, "\n")
		at := 0
		for i, l := range lines {
			if l == "file        "+file {
				at = i
			}
		}
		note := strings.HasPrefix(lines[at+1], "            ")
		if got.code != 0 || at == 0 || note != (c.want != "") || !strings.Contains(strings.Join(strings.Fields(got.stdout), " "), strings.ReplaceAll(c.want, "; ", " ")) {
			t.Errorf("%s: %+v", c.name, got)
		}
		f.status = exampleStatus()
		got = call(f, "", "status", "--json")
		if want := `"differs": ` + map[bool]string{true: "true", false: "false"}[c.want != ""]; got.code != 0 || !strings.Contains(got.stdout, want) || !strings.Contains(got.stdout, `"path": "`+file) {
			t.Errorf("%s: %s", c.name, got.stdout)
		}
	}
}

// saveChild tells a process of the tests below what to do.
const saveChild = "TAPGATE_TEST_SAVE"

// A process that is killed with the new text written has changed nothing, and is in
// nobody's way.
func TestSaveKilled(t *testing.T) {
	if file := os.Getenv(saveChild); file != "" {
		if _, err := stageFile(file, []byte(saved), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("staged\n")
		_, _ = io.Copy(io.Discard, os.Stdin) // until it is killed
		return
	}
	file, f := applied(t, saveConfig)
	child := exec.Command(os.Args[0], "-test.run", "^TestSaveKilled$")
	child.Env = append(os.Environ(), saveChild+"="+file)
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := child.StdoutPipe()
	if err == nil {
		err = child.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("staged\n"))
	if n, err := out.Read(line); err != nil || string(line[:n]) != "staged\n" {
		t.Errorf("%q, %v", line[:n], err)
	}
	if _, err := stageFile(file, []byte("mine"), 0o600); err == nil || !strings.Contains(err.Error(), "another tapgate is writing") {
		t.Errorf("two at once: %v", err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	if left, err := os.ReadFile(filepath.Join(filepath.Dir(file), ".tapgate.yaml.new")); err != nil || string(left) != saved {
		t.Errorf("nothing was left to clear up: %v", err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != saveConfig {
		t.Errorf("%v: the file says\n%s", err, got)
	}
	if got := call(f, "", strings.Fields(addNew+" --save")...); got.code != 0 {
		t.Errorf("%+v", got)
	}
	holds(t, "after the kill", file, saved)
}

// What the disk refuses is known before anything changes.
func TestSaveOnBadDisks(t *testing.T) {
	if os.Getenv(saveChild) == "" {
		child := exec.Command("unshare", "--mount", os.Args[0], "-test.run", "^TestSaveOnBadDisks$")
		child.Env = append(os.Environ(), saveChild+"=disks")
		if out, err := child.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	long := saveConfig + strings.Repeat("# "+strings.Repeat("x", 97)+"\n", 250)
	for _, c := range []struct {
		name, want string
		spoil      func(dir, file string)
	}{
		{"full", "no space left on device", func(dir, _ string) {
			filler, err := os.Create(filepath.Join(dir, "filler"))
			must(err)
			for err == nil {
				_, err = filler.Write(make([]byte, 4096))
			}
			must(filler.Close())
		}},
		{"read-only", "read-only file system", func(dir, _ string) {
			must(unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		}},
		{"mounted by itself", "is mounted by itself", func(_, file string) {
			must(unix.Mount(file, file, "", unix.MS_BIND, ""))
		}},
	} {
		dir := t.TempDir()
		must(unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
		file := filepath.Join(dir, "tapgate.yaml")
		writeText(t, file, long)
		c.spoil(dir, file)
		f := &fake{source: long, file: loader.SourceFile{Path: file, Sum: sumOf([]byte(long))}, result: done}
		got := call(f, "", strings.Fields(addNew+" --save")...)
		if got.code != exitFailed || !strings.Contains(got.errs, c.want) || !strings.Contains(got.errs, "nothing was changed") || f.gatewayCfg != nil {
			t.Errorf("%s: %+v", c.name, got)
		}
		holds(t, c.name, file, long)
		if c.name == "mounted by itself" {
			must(unix.Unmount(file, unix.MNT_DETACH))
		}
		must(unix.Unmount(dir, unix.MNT_DETACH))
	}
}
