package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tapgate/loader"
)

// unpacked are the files of a report by their names, without the folder's.
func unpacked(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	z, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for w := tar.NewReader(z); ; {
		h, err := w.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(w)
		if err != nil {
			t.Fatal(err)
		}
		folder, name, _ := strings.Cut(h.Name, "/")
		if !strings.HasPrefix(folder, "tapgate-report-") || h.Mode != 0o600 {
			t.Errorf("%s, mode %o", h.Name, h.Mode)
		}
		files[name] = string(text)
	}
}

// A part that fails holds the error, and the others are there all the same.
func TestReportOfFailures(t *testing.T) {
	out := filepath.Join(t.TempDir(), "r.tar.gz")
	f := &fake{err: errors.New("cannot be opened"), report: &loader.Report{Kernel: "6.18.1"}}
	got := call(f, "", "report", "-o", out, "--dmesg")
	if got.code != exitDone || !strings.Contains(got.stderr, "warning: status.txt: cannot be opened") || !strings.HasPrefix(got.stdout, out+" (") ||
		!strings.Contains(got.stdout, "--anonymize") {
		t.Fatalf("%+v", got)
	}
	file, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if st, err := file.Stat(); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	files := unpacked(t, file)
	for name, want := range map[string]string{
		"README.txt": "A report of tapgate", "version.txt": "layout", "system.txt": "/proc/version", "check.txt": "failed: cannot be opened",
		"status.json": "failed: cannot be opened", "flows.json": "failed: cannot be opened", "sysctls.txt": "net/ipv4/ip_forward = ",
		"links.txt": "lo: ", "bpf.json": `"state"`,
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s lacks %q: %s", name, want, files[name])
		}
	}
	if _, ok := files["dmesg.txt"]; !ok {
		t.Error("no messages of the kernel")
	}

	// What is there is not written over, whoever put it there.
	if got := call(f, "", "report", "-o", out); got.code != exitFailed || !strings.Contains(got.errs, "there is one already; name another file") {
		t.Errorf("%+v", got)
	}
}

func TestReportToStdout(t *testing.T) {
	failing := &fake{err: errors.New("cannot be opened"), report: &loader.Report{}}
	if got := call(failing, "", "report", "-o", "-"); got.code != exitDone || !strings.Contains(got.stderr, "warning: status.txt: cannot be opened") ||
		!strings.Contains(unpacked(t, strings.NewReader(got.stdout))["status.txt"], "failed: cannot be opened") {
		t.Errorf("parts that fail: code %d, %s", got.code, got.stderr)
	}
	f := &fake{status: &loader.Status{}, report: &loader.Report{}, source: smallConfig}
	f.flows = []loader.Flow{
		{Proto: "tcp", State: "established", Inside: "192.168.3.2:1", Outside: "203.0.113.1:1", Origin: "masquerade", Fast: true, Packets: 3, Bytes: 4, Copied: 1},
		{Proto: "tcp", State: "closing", FromOutside: true, Packets: 1, Bytes: 1},
	}
	got := call(f, "", "report", "-o", "-")
	if got.code != exitDone {
		t.Fatalf("%+v", got)
	}
	files := unpacked(t, strings.NewReader(got.stdout))
	if files["config.yaml"] != smallConfig {
		t.Error(files["config.yaml"])
	}
	for _, want := range []string{`"flows": 2`, `"fast": 1`, `"translated": 1`, `"copied": 1`, `"from_inside": 1`, `"tcp": 2`, `"closing": 1`, `"masquerade": 1`, `"packets": 4`} {
		if !strings.Contains(files["flows.json"], want) {
			t.Errorf("flows.json lacks %s: %s", want, files["flows.json"])
		}
	}
	if strings.Contains(files["flows.json"], "192.168") {
		t.Errorf("flows.json tells of flows: %s", files["flows.json"])
	}
}

func TestAnonymizer(t *testing.T) {
	a := newAnonymizer()
	for _, c := range []struct{ text, want string }{
		{"192.168.3.2:22 > 203.0.113.8", "198.18.0.1:22 > 198.18.0.2"},
		{`"to": "192.168.3.2:3389-3390", tcp:192.168.3.2/24`, `"to": "198.18.0.1:3389-3390", tcp:198.18.0.1/24`},
		{"[2001:db8:3::2]:80 via fe80::1%eth0 2001:DB8:3::2/64", "[2001:db8::3]:80 via fe80::4%eth0 2001:db8::3/64"},
		{"2001:db8:3::2: no route; from:2001:db8:3::2", "2001:db8::3: no route; from:2001:db8::3"},
		{"::ffff:192.168.3.2 and 192.168.3.2", "::ffff:198.18.0.1 and 198.18.0.1"},
		{"link/ether 52:54:00:AB:00:01 brd ff:ff:ff:ff:ff:ff", "link/ether 02:00:00:00:00:01 brd ff:ff:ff:ff:ff:ff"},
		{"52-54-00-ab-00-01, 52:54:00:ab:00:02", "02:00:00:00:00:01, 02:00:00:00:00:02"},
		{"bridge_id 8000.52:54:0:ab:0:1 altname enx525400ab0001", "bridge_id 8000.02:00:00:00:00:01 altname enx020000000001"},
		// Nobody's own, or no address at all.
		{"0.0.0.0/0 127.0.0.1:9435 ::1 ::/0 224.0.0.1 ff02::1 255.255.255.0", "0.0.0.0/0 127.0.0.1:9435 ::1 ::/0 224.0.0.1 ff02::1 255.255.255.0"},
		{"2026-11-22T22:30:00Z 12:34:56 1:2:3 6.18.44-fc kernel 6.1.0-50 a::b::c 300.1.2.3", "2026-11-22T22:30:00Z 12:34:56 1:2:3 6.18.44-fc kernel 6.1.0-50 a::b::c 300.1.2.3"},
		{"198.18.0.1 is one of theirs", "198.18.0.5 is one of theirs"},
	} {
		if got := a.text(c.text); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.text, got, c.want)
		}
	}
}
