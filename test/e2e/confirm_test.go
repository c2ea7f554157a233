package e2e

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// cutOff is gateBoth as nobody would want it: nothing gets out, the flows of the forward
// are gone, and the sensor gets nothing.
const cutOff = `
zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3]}
  mgmt:     {interfaces: [eth4]}
policies:
  - {name: nothing, from: internal, to: external, action: drop}
`

// confirmTime is what tests wait for: the shortest that there is.
const confirmTime = "5s"

// try puts a config in force that waits for confirmation.
func (g *gateway) try(config, within string) result {
	g.t.Helper()
	if g.forwarding != "" {
		config = "forwarding: " + g.forwarding + "\n" + config
	}
	r := g.tapgateIn(config, "apply", "-f", "-", "--confirm", within)
	if r.code != 0 {
		g.t.Fatalf("tapgate apply --confirm: %s", r)
	}
	return r
}

// pastDeadline waits until a change has gone back, without any tapgate that runs.
func (g *gateway) pastDeadline(within string) {
	g.t.Helper()
	d, err := time.ParseDuration(within)
	if err != nil {
		g.t.Fatal(err)
	}
	time.Sleep(d + 50*time.Millisecond)
}

// stopsOutward fails if a new flow from inside gets out.
func (g *gate) stopsOutward(in *peer, port uint16, out *peer) {
	g.t.Helper()
	text := g.text()
	in.udp(port, out.at(false, 9000), text)
	g.unseen(text, out, in)
}

// A change that nobody confirms goes back by itself, whatever has become of the process
// that made it: new flows are judged as before, old ones go on, the sensor gets its copies,
// and no program of ours has run in between.
func TestShortConfirm(t *testing.T) {
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateLab(t)
		g.kind = kind
		g.apply(gateBoth)
		in, out := g.pair()
		open := g.connect(in, 6000, out, 80, false)
		open.talk()
		g.mapUDP(in, 7000, out, 9000, false)
		before := g.status()

		r := g.try(cutOff, confirmTime)
		g.says(r, "- masquerade internal-external: ", "+ policy nothing: drop internal to external", "- interface eth2: ", "in force until ", "tapgate confirm")
		g.stopsOutward(in, 7001, out)
		g.pastDeadline(confirmTime)
		sensor, err := g.Sensor.Capture("eth0", lab.Incoming)
		if err != nil {
			t.Fatal(err)
		}
		text := g.text()
		in.udp(7002, out.at(false, 9000), text)
		if got := out.wantText(text); got.Src.Addr() != g.outside(false) {
			t.Errorf("after the deadline a new flow comes from %s", got.Src)
		}
		open.talk()
		eventually(t, func() string {
			for _, f := range sensor.Frames() {
				if p, err := pkt.Parse(f.Data); err == nil && string(p.Payload) == text {
					return ""
				}
			}
			return "no copy of what has passed after the deadline"
		})
		if _, err := sensor.Stop(); err != nil {
			t.Error(err)
		}

		s := g.status()
		if s.Serial != before.Serial || s.Pending != nil || s.Returned == nil || !s.Returned.Itself || s.Gateway == nil || len(s.Gateway.Masquerades) != 2 {
			t.Errorf("status after the deadline: %+v, %+v", s, s.Returned)
		}
		if m := s.Mirrors[0]; m.Skipped["undelivered"].Packets > 0 {
			t.Errorf("copies left unfinished: %+v", m.Skipped)
		}
		g.says(g.must("status"), "not confirmed in time and went back by itself")
		if r := g.tapgate("confirm"); r.code != 1 || !strings.Contains(r.stderr, "not confirmed in time") {
			t.Errorf("confirm after the deadline: %s", r)
		}
		g.says(g.must("rollback"), "already so", "not confirmed in time")
		if s := g.status(); s.Serial != before.Serial || len(s.Problems) > 0 {
			t.Errorf("what is left of it: %+v", s.Problems)
		}
		// And everything can be changed again, with another number.
		g.apply(gateBoth)
		if s := g.status(); s.Serial != before.Serial+2 || s.Returned != nil {
			t.Errorf("the next change is number %d, before %d: %+v", s.Serial, before.Serial, s.Returned)
		}
		open.talk()
	})
}

// While a change waits nothing else can be changed, and what is said is true; confirmed
// it stays beyond the deadline.
func TestConfirmKeeps(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateServers)
	in, out := g.pair()
	open := g.connect(in, 6000, out, 80, false)
	dir := filepath.Join(t.TempDir(), "state")
	kept := filepath.Join(dir, "confirmed.yaml")
	g.must("apply", "-f", g.file("first.yaml", gateServers), "--state-dir", dir)

	g.must("apply", "-f", g.file("cut.yaml", cutOff), "--confirm", confirmTime, "--state-dir", dir)
	s := g.status()
	if s.Pending == nil || s.Pending.Left <= 0 || s.Pending.Left > 5 || len(s.Gateway.Policies) != 1 {
		t.Errorf("status while it waits: %+v", s.Pending)
	}
	g.says(g.must("status"), "unless it is confirmed: tapgate confirm")
	g.says(g.must("config", "show"), "name: nothing")
	g.says(g.must("config", "show", "--previous"), "masquerade:")
	g.says(g.must("explain", in.Addr.String(), out.Addr.String(), "udp", "53"), "drop")
	for _, c := range []string{
		"apply -f " + g.file("first.yaml", gateServers), "apply -f " + g.file("cut.yaml", cutOff) + " --confirm 1h",
		"masquerade add --from internal --to external", "forward del web", "mirror del ids", "mirror add new --zone internal --l2 eth2",
		"attach --internal eth3 --dmz eth2 --sensor 192.168.4.2",
	} {
		if r := g.tapgate(words(c)...); strings.HasPrefix(c, "mirror") || strings.HasPrefix(c, "forward") {
			if r.code == 0 && !strings.Contains(r.stderr, "already so") { // cutOff has neither
				t.Errorf("%s while a change waits: %s", c, r)
			}
		} else if r.code != 1 || !strings.Contains(r.stderr, "waits for confirmation until ") || !strings.Contains(r.stderr, "tapgate rollback") {
			t.Errorf("%s while a change waits: %s", c, r)
		}
	}
	if text, err := os.ReadFile(kept); err != nil || string(text) != gateServers {
		t.Errorf("kept for the boot before it is confirmed: %v\n%s", err, text)
	}

	g.says(g.must("confirm", "--state-dir", dir), "confirmed: change ")
	g.says(g.must("confirm"), "already so")
	if text, err := os.ReadFile(kept); err != nil || string(text) != cutOff {
		t.Errorf("kept for the boot when it is confirmed: %v\n%s", err, text)
	}
	g.pastDeadline(confirmTime)
	g.stopsOutward(in, 7001, out)
	if s := g.status(); s.Pending != nil || s.Returned != nil || len(s.Gateway.Policies) != 1 || len(s.Problems) > 0 {
		t.Errorf("status when it is confirmed: %+v %+v %q", s.Pending, s.Returned, s.Problems)
	}
	// A policy is for new flows.
	open.talk()
	g.must("detach", "--state-dir", dir)
	if _, err := os.Stat(kept); !os.IsNotExist(err) {
		t.Errorf("kept for the boot after detach: %v", err)
	}
}

// file writes a file of the test.
func (g *gateway) file(name, text string) string {
	g.t.Helper()
	file := filepath.Join(g.Dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
	return file
}

// Rollback takes back at once what waits, and else goes to the configuration before, and
// from there to the later one.
func TestConfirmRollback(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateServers)
	in, out := g.pair()
	if r := g.tapgate("rollback"); r.code != 1 || !strings.Contains(r.stderr, "no configuration before") {
		t.Errorf("nothing before: %s", r)
	}
	open := g.connect(in, 6000, out, 80, false)
	g.try(cutOff, "1h")
	g.stopsOutward(in, 7001, out)
	g.says(g.must("rollback"), "taken back: change 2", "+ forward rdp: ", "- policy nothing: ")
	g.mapUDP(in, 7002, out, 9000, false)
	open.talk()
	g.says(g.must("rollback"), "already so", "was taken back at ")
	if r := g.tapgate("confirm"); r.code != 1 || !strings.Contains(r.stderr, "was taken back") {
		t.Errorf("confirm behind rollback: %s", r)
	}

	// The deadline passes while somebody is about to take it back: that is no failure.
	g.try(cutOff, "1h")
	g.pastDeadlineNow()
	if _, err := loader.TakeBack(loader.Options{Netns: g.Gateway.Name, BPFFS: g.bpffs, LockTimeout: gateWait}); !errors.Is(err, loader.ErrNoneWaits) {
		t.Errorf("taken back behind the deadline: %v", err)
	}
	g.says(g.must("rollback"), "already so", "went back by itself at ")

	g.apply(cutOff)
	g.apply(cutOff) // the same again is no change
	g.says(g.must("config", "show", "--previous"), "rdp")
	g.says(g.must("rollback"), "+ forward rdp: ")
	if r := g.must("config", "show"); r.stdout != gateServers {
		t.Errorf("not the text that was applied:\n%s", r.stdout)
	}
	g.mapUDP(in, 7003, out, 9000, false)
	g.says(g.must("rollback"), "- forward rdp: ")
	g.stopsOutward(in, 7004, out)
	if s := g.status(); len(s.Problems) > 0 {
		t.Errorf("problems: %q", s.Problems)
	}
}

// The first configuration of all: when it goes back, the machine forwards nothing, as
// before, and is reached as before; the next command clears up.
func TestConfirmFirst(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"detach", "apply", "rollback", "rollback in time"} {
		t.Run(strings.ReplaceAll(way, " ", "-"), func(t *testing.T) {
			g := newGateLab(t)
			for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
				if err := g.Gateway.Sysctl(key, "0"); err != nil {
					t.Fatal(err)
				}
			}
			in, out := g.pair()
			before := g.list()
			g.try(gateBoth, confirmTime)
			g.mapUDP(in, 7000, out, 9000, false)
			if way != "rollback in time" {
				g.pastDeadline(confirmTime)
				g.stopsOutward(in, 7001, out)
				g.reachesGateway(in)
				if r := g.tapgate("status"); r.code != 3 || !strings.Contains(r.stderr, "not confirmed in time") {
					t.Errorf("status: %s", r)
				}
				if r := g.tapgate("confirm"); r.code != 1 || !strings.Contains(r.stderr, "too late") {
					t.Errorf("confirm: %s", r)
				}
			}
			switch way {
			case "apply":
				g.apply(gateBoth)
				g.mapUDP(in, 7002, out, 9000, false)
				g.must("detach")
			default:
				g.must(strings.Fields(way)[0])
			}
			if r := g.tapgate("status"); r.code != 3 || strings.Contains(r.stderr, "confirmed") {
				t.Errorf("status afterwards: %s", r)
			}
			g.unchanged(before, "afterwards")
		})
	}
}

// reachesGateway has a host ping the gateway itself.
func (g *gate) reachesGateway(p *peer) {
	g.t.Helper()
	gw := p.Addr.As4()
	gw[3] = 1
	text := g.text()
	p.query(false, 77, netip.AddrFrom4(gw), text)
	p.wantText(text)
}
