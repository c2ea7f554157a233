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
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"tapgate/loader"
)

func translationNews(event string, n int) (news loader.TranslationNews) {
	at := time.Date(2026, 11, 22, 19, 0, 0, 0, time.UTC)
	for range n {
		e := loader.TranslationEvent{
			Time: at, Event: event, Proto: "udp", Inside: "192.168.3.2:5000", Outside: "203.0.113.1:1025", Remote: "203.0.113.8:53",
			InsideZone: "internal", OutsideZone: "external", Origin: "masquerade", Started: at,
		}
		if event == "end" {
			e.TranslationTotals = &loader.TranslationTotals{Last: at, PacketsOut: 1}
		}
		news.Events = append(news.Events, e)
	}
	return news
}

// Every line is an object of its own, however many there are, and a start has
// nothing that only an end knows.
func TestFlowLogLines(t *testing.T) {
	var out strings.Builder
	l, err := openFlowLog("-", &out)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.mark("begin"), l.tell(translationNews("start", 1000)), l.tell(translationNews("end", 1)), l.reopen()); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 1002 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, line := range lines {
		if err := json.Unmarshal([]byte(line), &map[string]any{}); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
	}
	const start = `{"time":"2026-11-22T19:00:00Z","event":"start","proto":"udp","inside":"192.168.3.2:5000","outside":"203.0.113.1:1025",` +
		`"remote":"203.0.113.8:53","inside_zone":"internal","outside_zone":"external","origin":"masquerade","started":"2026-11-22T19:00:00Z"}`
	if lines[1] != start {
		t.Errorf("got  %s\nwant %s", lines[1], start)
	}
	if end := strings.TrimSuffix(strings.Replace(start, "start", "end", 1), "}") +
		`,"last":"2026-11-22T19:00:00Z","packets_out":1,"bytes_out":0,"packets_in":0,"bytes_in":0}`; lines[1001] != end {
		t.Errorf("got  %s\nwant %s", lines[1001], end)
	}
	if n := testutil.ToFloat64(l.lines.WithLabelValues("start")); n != 1000 {
		t.Errorf("%v lines are counted", n)
	}
}

// fullDisk takes a part of what is written until there is room.
type fullDisk struct {
	strings.Builder
	full bool
}

func (d *fullDisk) Write(p []byte) (int, error) {
	if d.full {
		n, _ := d.Builder.Write(p[:10])
		return n, io.ErrShortWrite
	}
	return d.Builder.Write(p)
}

// A line that was cut short spoils none of those behind it, and the log says how many
// events are missing.
func TestFlowLogFullDisk(t *testing.T) {
	var disk fullDisk
	l, err := openFlowLog("-", &disk)
	if err != nil {
		t.Fatal(err)
	}
	disk.full = true
	lost := loader.TranslationNews{LostStarts: 2, LostEnds: 1}
	for _, news := range []loader.TranslationNews{translationNews("start", 1), translationNews("end", 4), lost} {
		if err := l.tell(news); !errors.Is(err, io.ErrShortWrite) {
			t.Fatalf("a full disk: %v", err)
		}
	}
	disk.full = false
	if err := errors.Join(l.mark("stop"), l.tell(lost), l.mark("stop")); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(disk.String(), "\n"), "\n")
	want := []string{
		`{"time":"2`, `{"time":"`, `{"time":"`, `"event":"lost","reason":"unwritten","count":8}`, `"event":"stop"}`,
		`"event":"lost","reason":"behind","count":3,"starts":2,"ends":1}`, `"event":"stop"}`,
	}
	if len(lines) != len(want) {
		t.Fatalf("%q", lines)
	}
	for i, end := range want {
		if !strings.HasSuffix(lines[i], end) {
			t.Errorf("line %d: %q, want %q", i, lines[i], end)
		}
	}
	for reason, want := range map[string]float64{lostUnwritten: 5, lostBehind: 6} {
		if n := testutil.ToFloat64(l.lost.WithLabelValues(reason)); n != want {
			t.Errorf("%v are counted as %s, want %v", n, reason, want)
		}
	}
}

// The agent writes what it is told, and ends the log when it ends.
func TestAgentLogsFlows(t *testing.T) {
	file := filepath.Join(t.TempDir(), "flows.json")
	f := &fake{translations: make(chan loader.TranslationNews, 1)}
	f.translations <- translationNews("present", 2)
	f.follow = func(ctx context.Context, _ *slog.Logger, _ func() error) error {
		f.hooks.Looked(nil)
		f.hooks.Looked(nil)
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if raw, _ := os.ReadFile(file); strings.Count(string(raw), "\n") == 3 {
				return nil
			}
		}
		return errors.New("no lines")
	}
	got := call(f, "", "agent", "--listen", "", "--log-flows", file)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var events []string
	for line := range strings.Lines(string(raw)) {
		var e loader.TranslationEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		events = append(events, e.Event)
	}
	if got.code != 0 || strings.Join(events, " ") != "begin present present stop" {
		t.Errorf("%+v, lines %q", got, events)
	}
	if got := call(f, "", "agent", "--listen", "", "--log-flows", "/nonexistent/x"); got.code != exitFailed || !strings.Contains(got.errs, "log of translations: open /nonexistent/x") {
		t.Errorf("%+v", got)
	}
	// An agent that does not get to follow, since there is another, writes nothing.
	f = &fake{follow: func(context.Context, *slog.Logger, func() error) error { return loader.ErrBusy }}
	if got := call(f, "", "agent", "--listen", "", "--log-flows", "-"); got.code != exitBusy || got.stdout != "" {
		t.Errorf("%+v", got)
	}
}
