package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapgate/loader"
)

// smallDisk has room for so many bytes.
type smallDisk struct {
	strings.Builder
	room int
}

func (d *smallDisk) Write(p []byte) (int, error) {
	n, _ := d.Builder.Write(p[:min(d.room, len(p))])
	d.room -= n
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// Wherever a disk is full, each event is in the log or counted as missing, and never
// both; and no line is empty.
func TestFlowLogFullAnywhere(t *testing.T) {
	var whole smallDisk
	whole.room = 1 << 20
	l, err := openFlowLog("-", &whole)
	if err := errors.Join(err, l.tell(translationNews("start", 5))); err != nil {
		t.Fatal(err)
	}
	const more = 10
	for room := range whole.Len() {
		disk := smallDisk{room: room}
		if l, err = openFlowLog("-", &disk); err != nil {
			t.Fatal(err)
		}
		if err := l.tell(translationNews("start", 5)); err == nil {
			t.Fatalf("room for %d bytes: no error", room)
		}
		disk.room = 1
		_ = l.tell(translationNews("start", 1))
		disk.room = 1 << 20
		if err := l.tell(translationNews("start", more)); err != nil {
			t.Fatal(err)
		}
		var written, lost uint64
		torn := 0
		for line := range strings.Lines(disk.String()) {
			var e flowLoss
			switch err := json.Unmarshal([]byte(line), &e); {
			case line == "\n":
				t.Errorf("room for %d bytes: an empty line", room)
			case err != nil:
				torn++
			case e.Event == "lost":
				lost += e.Count
			default:
				written++
			}
		}
		if written+lost != 5+1+more || torn > 2 {
			t.Fatalf("room for %d bytes: %d are written, %d missing, %d lines are torn", room, written, lost, torn)
		}
	}
}

// A file that ends within a line goes on with a new one, and no other does; one that was
// removed is made anew, and until it can be what comes is counted as missing.
func TestFlowLogFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	file := filepath.Join(dir, "flows.json")
	lines := func() (all []string) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, `"event":"begin"`) {
				line = "begin\n"
			}
			if _, rest, ok := strings.Cut(line, `"event":"lost",`); ok {
				line = "lost " + rest
			}
			all = append(all, line)
		}
		return all
	}
	expect := func(what, want string) {
		t.Helper()
		if got := strings.Join(lines(), ""); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(dir, 0o700))
	write("{\"to")
	l, err := openFlowLog(file, nil)
	must(err, l.mark("begin"))
	expect("torn by the agent before", "{\"to\nbegin\n")

	l.torn = true // the old file, since the disk was full
	must(os.Remove(file), l.reopen(), l.mark("begin"))
	expect("another file", "begin\n")
	must(l.reopen(), l.mark("begin"))
	expect("the same file", "begin\nbegin\n")

	must(os.RemoveAll(dir))
	if err := l.tell(translationNews("start", 3)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without its folder: %v", err)
	}
	must(os.Mkdir(dir, 0o700), l.mark("begin"))
	expect("removed with its folder", "lost \"reason\":\"unwritten\",\"count\":3}\nbegin\n")
	must(os.Remove(file), l.mark("begin"))
	expect("removed", "begin\n")

	// Renamed, it is written on until somebody asks for another.
	must(os.Rename(file, file+".1"), l.mark("begin"))
	if _, err := os.Stat(file); err == nil {
		t.Error("what was renamed was made anew")
	}
	must(os.Rename(file+".1", file))
	expect("renamed", "begin\nbegin\n")
	must(l.close())
}

// A FIFO that nobody reads is an error, and one whose reader hangs keeps no agent from
// ending.
func TestFlowLogFIFO(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openFlowLog(fifo, nil); err == nil || !strings.Contains(err.Error(), "a FIFO that nobody reads") {
		t.Errorf("nobody reads: %v", err)
	}
	open := func() *os.File {
		reader, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		return reader
	}
	reader := open()
	l, err := openFlowLog(fifo, nil)
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	if err := l.tell(translationNews("start", 3)); !errors.Is(err, unix.EPIPE) {
		t.Errorf("a reader that has gone: %v", err)
	}
	reader = open()
	if err := l.mark("stop"); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 4096)
	n, err := reader.Read(text)
	if lines := strings.Split(string(text[:n]), "\n"); err != nil || len(lines) != 3 ||
		!strings.Contains(lines[0], `"event":"lost","reason":"unwritten","count":3}`) || !strings.Contains(lines[1], `"event":"stop"}`) {
		t.Errorf("the next reader: %q, %v", lines, err)
	}
	reader.Close()
	reader = open()
	defer reader.Close()
	f := &fake{translations: make(chan loader.TranslationNews)}
	f.follow = func(context.Context, *slog.Logger, func() error) error {
		f.hooks.Looked(nil)
		f.translations <- translationNews("start", 10000) // more than a pipe holds
		time.Sleep(time.Second)                           // for the writer to hang
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		return nil
	}
	if got := call(f, "", "agent", "--listen", "", "--log-flows", fifo); got.code != exitDone || !strings.Contains(got.stderr, "it takes nothing more, so its last lines are lost") {
		t.Errorf("a reader that hangs: %+v", got)
	}
}
