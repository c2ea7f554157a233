package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"tapgate/loader"
)

// topLater is the example a second later.
func topLater() *loader.Status {
	s := exampleStatus()
	s.Gateway = exampleGateway()
	s.Members[1].Ingress, s.Members[2].Ingress = later(s.Members[1].Ingress), later(s.Members[2].Ingress)
	m := &s.Mirrors[0]
	m.Matched = count(m.Matched.Packets+1500, m.Matched.Bytes+1500000)
	target := &m.Targets[0]
	target.Matched, target.Copied = count(target.Matched.Packets+1500, target.Matched.Bytes+1500000), count(target.Copied.Packets+1400, target.Copied.Bytes+1400000)
	target.Skipped = maps.Clone(target.Skipped)
	target.Skipped["too_big"] = count(target.Skipped["too_big"].Packets+100, 0)
	s.Gateway.Created += 20
	s.Gateway.Refused = maps.Clone(s.Gateway.Refused)
	s.Gateway.Refused["ports"] += 5
	return s
}

func later(d *loader.DirectionStatus) *loader.DirectionStatus {
	if d == nil {
		return nil
	}
	next := *d
	next.Seen = count(d.Seen.Packets+2000, d.Seen.Bytes+2000000)
	next.Reasons = map[string]uint64{"drop_from_dmz": 3000}
	return &next
}

func topFlows() []loader.FlowRate {
	flow := func(proto, inside, remote string, packets, bytes float64) loader.FlowRate {
		return loader.FlowRate{Flow: loader.Flow{Proto: proto, Inside: inside, Remote: remote, Bytes: 123456}, PacketRate: packets, ByteRate: bytes}
	}
	flows := []loader.FlowRate{
		flow("tcp", "192.168.3.250:60000", "203.0.113.250:60000", 1200, 1500000),
		flow("udp", "[2001:db8:3:1234:5678:9abc:def0:1234]:60000", "[2001:db8:113:1234:5678:9abc:def0:1234]:60443", 2000, 900),
		flow("icmp", "192.168.3.2:7", "203.0.113.8", 0, 0),
	}
	flows[0].Fast, flows[1].FromOutside = true, true
	return flows
}

func exampleTop() *top {
	at := time.Date(2026, 11, 22, 19, 0, 0, 0, time.UTC)
	was := exampleStatus()
	was.Gateway = exampleGateway()
	return &top{
		interval: topInterval, was: &topLook{at: at, status: was},
		now: &topLook{at: at.Add(time.Second), status: topLater(), flows: topFlows()},
	}
}

// What top shows on a terminal of 80 columns, and of less than that.
func TestTopGolden(t *testing.T) {
	golden(t, "top.txt", strings.Join(exampleTop().lines(80, 0), "\n")+"\n")
	for _, size := range [][2]int{{80, 24}, {80, 50}, {40, 10}, {20, 3}, {1, 1}, {200, 60}} {
		x := exampleTop()
		x.err = errors.New(strings.Repeat("not attached ", 20))
		lines := x.lines(size[0], size[1])
		if len(lines) > size[1] {
			t.Errorf("%v: %d lines", size, len(lines))
		}
		for _, l := range lines {
			if l = strings.TrimPrefix(l, titleMark); utf8.RuneCountInString(l) > size[0] {
				t.Errorf("%v: %q is longer", size, l)
			}
		}
		if size[1] >= 24 && !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "tcp 192.168.3.250:60000 > ") }) {
			t.Errorf("%v: no flows:\n%s", size, strings.Join(lines, "\n"))
		}
	}
}

func TestTopKeys(t *testing.T) {
	x := exampleTop()
	remotes := func() (all []string) {
		for _, f := range x.now.flows {
			all = append(all, f.Proto)
		}
		return all
	}
	for _, c := range []struct {
		keys   string
		order  loader.FlowOrder
		paused bool
		every  time.Duration
		first  string
	}{
		{"s", loader.ByPackets, false, 2 * time.Second, "udp"},
		{"ssS", loader.ByBytes, false, 2 * time.Second, "tcp"},
		{"p+", loader.ByBytes, true, 4 * time.Second, "tcp"},
		{" ---", loader.ByBytes, false, 500 * time.Millisecond, "tcp"},
		{"----------x", loader.ByBytes, false, topIntervalMin, "tcp"},
		{"++++++++++++", loader.ByBytes, false, topIntervalMax, "tcp"},
	} {
		for _, k := range []byte(c.keys) {
			if x.key(k) {
				t.Errorf("%q ends it", k)
			}
		}
		if topOrders[x.order] != c.order || x.paused != c.paused || x.interval != c.every || remotes()[0] != c.first {
			t.Errorf("after %q: %s, paused %v, %v, %v", c.keys, topOrders[x.order], x.paused, x.interval, remotes())
		}
	}
	for _, k := range []byte{'q', 'Q', ctrlC} {
		if !x.key(k) {
			t.Errorf("%q does not end it", k)
		}
	}
}

// Counters that were set to zero in between, and looks without one before.
func TestTopRates(t *testing.T) {
	v := &topView{span: 2}
	for _, c := range [][3]uint64{{10, 4, 3}, {10, 10, 0}, {4, 10, 2}} {
		if got := v.perSecond(c[0], c[1]); got != float64(c[2]) {
			t.Errorf("from %d to %d: %v", c[1], c[0], got)
		}
	}
	if got := (&topView{}).perSecond(9, 1); got != 0 {
		t.Errorf("in no time: %v", got)
	}
	for n, want := range map[float64]string{0: "0", 0.04: "0.0", 0.5: "0.5", 9.94: "9.9", 9.96: "10", 999.4: "999", 999.5: "1.0k", 12345: "12k", 1.5e9: "1.5G", 2e21: "2000E"} {
		if got := rate(n); got != want {
			t.Errorf("%v is %q, want %q", n, got, want)
		}
	}
	for text, want := range map[string]string{"abcdefghij": "abcdefghij", "abcdefghijk": "abc~fghijk"} {
		if got := shorten(text, 10); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

// A batch is printed; without a terminal there is nothing else.
func TestTopBatch(t *testing.T) {
	s := exampleStatus()
	s.Gateway = exampleGateway()
	f := &fake{status: s, heaviest: topFlows()}
	got := call(f, "", "top", "--batch", "2", "--interval", "200ms", "--sort", "total-bytes")
	if got.code != 0 || strings.Count(got.stdout, "tapgate top") != 2 || strings.Count(got.stdout, "flows by bytes ") != 2 || strings.Contains(got.stdout, titleMark) {
		t.Errorf("%+v", got)
	}
	if want := fmt.Sprint([]string{"open", "heaviest total-bytes", "open", "heaviest total-bytes", "open", "heaviest total-bytes"}); fmt.Sprint(f.calls) != want || f.closed != 3 {
		t.Errorf("calls %v, closed %d times", f.calls, f.closed)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"top"}, "top needs a terminal"},
		{[]string{"top", "--sort", "byte", "--once"}, `--sort "byte": must be one of bytes, packets, total-bytes, total-packets; did you mean "bytes"?`},
		{[]string{"top", "--interval", "2m"}, "--interval 2m0s: must be from 200ms to 1m0s"},
		{[]string{"top", "--batch", "-1"}, "--batch -1: must be above zero"},
	} {
		if got := call(&fake{status: s}, "", c.args...); got.code != exitUsage || !strings.Contains(got.errs, c.want) {
			t.Errorf("%v: %+v", c.args, got)
		}
	}
	if got := call(&fake{err: loader.ErrNotAttached}, "", "top", "--once"); got.code != exitNotAttached {
		t.Errorf("%+v", got)
	}
	// Files that are none of a terminal's.
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := openScreen(null, null); err == nil || exitCode(err) != exitUsage {
		t.Errorf("a file that is no terminal: %v", err)
	}
}
