package e2e

import (
	"bytes"
	"context"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// eachKind runs a test with both ways to attach, at the same time.
func eachKind(t *testing.T, f func(t *testing.T, kind loader.AttachKind)) {
	eachKindAlone(t, func(t *testing.T, kind loader.AttachKind) {
		t.Parallel()
		f(t, kind)
	})
}

// eachKindAlone is eachKind for a test that needs the machine: one after the other.
func eachKindAlone(t *testing.T, f func(t *testing.T, kind loader.AttachKind)) {
	for _, kind := range []loader.AttachKind{loader.AttachTCX, loader.AttachClsact} {
		t.Run(string(kind), func(t *testing.T) {
			if kind == loader.AttachTCX {
				kernels.Require(t, "tcx")
			}
			f(t, kind)
		})
	}
}

// The recipe's own check, on every kernel: the sensor sees a server's ping in
// both directions with the server's own address, and nothing stays behind.
func TestShortPing(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t, lab.RoutedOutside())
		g.kind = kind
		g.apply(example)
		server, outside := g.Servers[0], g.Outside[0]
		capture, err := g.Sensor.Capture("eth0", lab.Incoming)
		if err != nil {
			t.Fatal(err)
		}
		const pings = 3
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if n, err := server.Ping(ctx, outside.Addr, pings); err != nil || n != pings {
			t.Fatalf("%d of %d pings answered, %v", n, pings, err)
		}
		src, dst := server.Addr.As4(), outside.Addr.As4()
		count := func(frames []lab.Frame, from, to []byte, icmp byte) (n int) {
			for _, f := range frames {
				p := f.Payload()
				if kind, _ := f.EtherType(); kind == 0x0800 && len(p) > 20 && p[9] == 1 && p[20] == icmp &&
					bytes.Equal(p[12:16], from) && bytes.Equal(p[16:20], to) {
					n++
				}
			}
			return n
		}
		frames, err := capture.WaitFor(func(frames []lab.Frame) bool {
			return count(frames, src[:], dst[:], 8) == pings && count(frames, dst[:], src[:], 0) == pings
		}, 10*time.Second)
		if err != nil {
			t.Fatalf("the sensor saw %d requests and %d replies of %d: %v", count(frames, src[:], dst[:], 8),
				count(frames, dst[:], src[:], 0), pings, err)
		}
		s := g.checkLedgers()
		if m := s.Mirrors[0]; m.Copied.Packets < 2*pings || m.Copied != m.Matched {
			t.Errorf("not every packet was copied: %+v", m)
		}
		for _, m := range s.Members {
			if m.Ingress != nil && m.Attached != string(kind) {
				t.Errorf("%s is attached by %q, want %q", m.Interface, m.Attached, kind)
			}
		}
		if len(s.Problems) > 0 {
			t.Errorf("status tells problems: %q", s.Problems)
		}
		g.must("detach")
		if r := g.tapgate("status"); r.code != 3 {
			t.Errorf("status after detach: %s", r)
		}
	})
}
