package main

import (
	"context"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestModes sees every mode copy each packet of both directions, exactly once,
// and production lose none, so that no figure compares a tap that does less.
func TestModes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, for network namespaces and BPF")
	}
	set := &settings{packets: 4096, bytes: 2_000_000, cpu: lastCPU(), tapgate: build(t)}
	for _, m := range allModes {
		t.Run(m.name, func(t *testing.T) {
			l, err := newLab(t.Context(), set, m)
			if err != nil {
				t.Fatal(err)
			}
			defer l.close()
			want := 0.0
			if m.up != nil {
				want = float64(set.packets)
			}
			for name, direction := range map[string]int{"out": outbound, "both": alternating} {
				s, err := udp(direction)(t.Context(), l)
				if err != nil {
					t.Fatal(err)
				}
				if s.Sent != float64(set.packets) || s.Units != s.Sent {
					t.Errorf("%s: %v of %v packets came through, of %d asked for", name, s.Units, s.Sent, set.packets)
				}
				if s.Frames != want {
					t.Errorf("%s: %v copies, want %v", name, s.Frames, want)
				}
				if s.CPU <= 0 {
					t.Errorf("%s: CPU time is %v ns", name, s.CPU)
				}
			}
			for name, gso := range map[string]bool{"1500": false, "gso": true} {
				s, err := tcp(gso)(t.Context(), l)
				if err != nil {
					t.Fatal(err)
				}
				if s.Units < float64(set.bytes)/2 || m.up != nil && s.Seen < 1 || m.up == nil && s.Seen != 0 {
					t.Errorf("tcp %s: %v of %d bytes came through, the sensor saw %v of them", name, s.Units, set.bytes, s.Seen)
				}
			}
		})
	}
	if left, _ := filepath.Glob("/run/netns/" + prefix() + "*"); len(left) > 0 {
		t.Errorf("%v left over", left)
	}
}

func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "tapgate")
	out, err := exec.Command("go", "build", "-o", binary, "tapgate/cmd/tapgate").CombinedOutput()
	if err != nil {
		t.Fatalf("build tapgate: %v\n%s", err, out)
	}
	return binary
}

// TestGiveUp sees that a mode which cannot be set up leaves nothing behind,
// and that the run goes on without it and fails in the end.
func TestGiveUp(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, for network namespaces and BPF")
	}
	broken := mode{"broken", "", func(context.Context, *lab) error { return os.ErrNotExist }}
	set := &settings{rounds: 1, packets: 64, cpu: lastCPU(), modes: []mode{allModes[0], broken}, tests: allTests[:1]}
	rep := newReport(set)
	if err := round(t.Context(), set, rep, 0); err != nil {
		t.Fatal(err)
	}
	rep.finish()
	if err := rep.failed(); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("error is %v, want one that names the mode", err)
	}
	if len(rep.Results) != 1 || rep.Results[0].Mode != baseline {
		t.Errorf("results %+v, want those of %s alone", rep.Results, baseline)
	}
	if left, _ := filepath.Glob("/run/netns/" + prefix() + "*"); len(left) > 0 {
		t.Errorf("%v left over", left)
	}
}

func TestFigures(t *testing.T) {
	set := &settings{rounds: 1, tests: allTests[:1]}
	set.modes, _ = choose(allModes, []string{baseline, "tee", reference})
	rep := newReport(set)
	// 1000, 3000 and 1500 ns a packet, one copy each; the second pass runs on
	// a machine half as fast, the third is disturbed for one mode.
	for pass, factor := range []float64{1, 2, 1} {
		rep.add(pass, "udp-out", baseline, sample{Units: 100, Sent: 100, CPU: 100_000 * factor})
		rep.add(pass, "udp-out", "tee", sample{Units: 100, Sent: 100, CPU: 300_000 * factor, Frames: 100, Seen: 1})
		slow := 1.0
		if pass == 2 {
			slow = 5
		}
		rep.add(pass, "udp-out", reference, sample{Units: 100, Sent: 100, CPU: 150_000 * factor * slow, Frames: 100, Seen: 1})
	}
	rep.finish()
	for i, want := range []result{
		{Mode: baseline, Rate: 1, Ratio: 1},
		{Mode: "tee", Rate: 1. / 3, Ratio: 1. / 3, CopyNs: 2000, CopyRatio: 4, Seen: 1},
		{Mode: reference, Rate: 1. / 3, Ratio: 2. / 3, CopyNs: 1000, CopyRatio: 1, Seen: 1},
	} {
		got := rep.Results[i]
		for what, v := range map[string][2]float64{
			"rate": {got.Rate, want.Rate}, "ratio": {got.Ratio, want.Ratio}, "ns": {got.CopyNs, want.CopyNs},
			"copy ratio": {got.CopyRatio, want.CopyRatio}, "seen": {got.Seen, want.Seen}, "lost": {got.Lost, 0},
		} {
			if math.Abs(v[0]-v[1]) > 1e-9 {
				t.Errorf("%s of %s is %v, want %v", what, want.Mode, v[0], v[1])
			}
		}
	}
	if got := median([]float64{4, 1, 2, 3}); got != 2.5 {
		t.Errorf("median is %v, want 2.5", got)
	}
	for _, want := range []string{"tee", "0.33", "4.00", "100.0 %"} {
		if out := rep.table(false); !strings.Contains(out, want) {
			t.Errorf("table has no %q:\n%s", want, out)
		}
	}
}

func TestFrameChecksums(t *testing.T) {
	from, to := netip.MustParseAddrPort("192.168.3.2:40000"), netip.MustParseAddrPort("203.0.113.8:9")
	f := udpFrame(insideMAC, serverMAC, from, to)
	if len(f) != frameSize {
		t.Errorf("frame of %d bytes, want %d", len(f), frameSize)
	}
	if got := sum(0, f[14:34]); got != 0xffff {
		t.Errorf("IP header sums up to %#x, want 0xffff", got)
	}
	if got := sum(17+uint32(len(f)-34)+uint32(sum(0, f[26:34])), f[34:]); got != 0xffff {
		t.Errorf("UDP sums up to %#x, want 0xffff", got)
	}
}

func TestArguments(t *testing.T) {
	for _, bad := range [][]string{{"nosuchmode"}, {"--tests", "nosuchtest"}, {"--rounds", "0"}, {"--packets", "100000000"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
	set, err := parse([]string{"tee", "--quick", "--rounds", "1"})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(names(set.modes), " "); got != "plain tee" || set.rounds != 1 {
		t.Errorf("modes %q and %d rounds, want plain beside tee and 1", got, set.rounds)
	}
}
