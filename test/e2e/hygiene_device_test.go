package e2e

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"tapgate/loader"
	"tapgate/test/lab"
)

// ip runs "ip" in a host; words are separated by spaces.
func (g *gateway) ip(h *lab.Host, line string) {
	g.t.Helper()
	if _, err := h.Command(g.Context(), "ip", strings.Fields(line)...).Output(); err != nil {
		g.t.Fatalf("ip %s: %v", line, err)
	}
}

// wantProblems fails unless status tells these problems, or none if none is given.
func (g *gateway) wantProblems(texts ...string) {
	g.t.Helper()
	problems := g.status().Problems
	ok := len(texts) > 0 == (len(problems) > 0)
	for _, text := range texts {
		ok = ok && slices.ContainsFunc(problems, func(p string) bool { return strings.Contains(p, text) })
	}
	if !ok {
		g.t.Errorf("status tells the problems %q, want %q", problems, texts)
	}
}

// copies fails unless an exchange is copied: two pings, both directions.
func (g *gateway) copies(what string) {
	g.t.Helper()
	before := g.mirror("ids")
	g.exchange()
	if after := g.mirror("ids"); after.Copied.Packets < before.Copied.Packets+4 {
		g.t.Errorf("%s: copied %d packets, then %d; matched %d, then %d", what,
			before.Copied.Packets, after.Copied.Packets, before.Matched.Packets, after.Matched.Packets)
	}
}

// resolved lets the sensor's MAC be learned.
func (g *gateway) resolved() {
	g.t.Helper()
	eventually(g.t, func() string {
		g.exchange()
		for _, target := range g.mirror("ids").Targets {
			if n := target.Neighbour; n != nil && n.MAC == "" {
				return "the sensor's MAC is not known"
			}
		}
		return ""
	})
}

// newTapped is a gateway with the example in force, to which the sensor has answered.
func newTapped(t *testing.T, kind loader.AttachKind) *gateway {
	t.Helper()
	g := newGateway(t, lab.RoutedOutside())
	g.kind = kind
	g.apply(example)
	g.resolved()
	return g
}

// recable makes the cable between the gateway and the first host of a network
// again, after the old one was deleted.
func (g *gateway) recable(h *lab.Host, ifname string, sameIndex bool) {
	g.t.Helper()
	iface, peer := g.Gateway.Interface(ifname), h.Interfaces[0]
	line := "link add " + ifname
	if sameIndex {
		line += " index " + strconv.Itoa(iface.Index)
	}
	line += " address " + iface.MAC.String() + " type veth peer name eth0 address " + peer.MAC.String() + " netns " + h.Name
	g.ip(g.Gateway, line)
	g.addressed(ifname)
	g.ip(h, "addr add "+peer.Addr.String()+" dev eth0")
	g.ip(h, "link set eth0 up")
	g.ip(h, "route add default via "+iface.Addr.Addr().String())
}

// addressed gives an interface of the gateway back what it was made with.
func (g *gateway) addressed(ifname string) {
	g.t.Helper()
	g.ip(g.Gateway, "addr add "+g.Gateway.Interface(ifname).Addr.String()+" dev "+ifname)
	g.ip(g.Gateway, "link set "+ifname+" up")
}

const tapMoved = "interface eth3 is not there any more"

// withoutEth3 is a config for when eth3 went away.
var withoutEth3 = strings.NewReplacer("[eth3]", "[eth4]", "  mgmt:     {interfaces: [eth4]}\n", "").Replace(example)

// Moved away and back before any command was run, the tap goes on (but for
// filters, which do not survive a move). A command in between takes it off.
func TestHygieneDeviceMovedAndBack(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newTapped(t, kind)
		g.wantProblems()
		there := func() { g.ip(g.Gateway, "link set eth3 netns "+g.Mgmt.Name+" name guest0") }
		back := func() {
			g.ip(g.Mgmt, "link set guest0 netns "+g.Gateway.Name+" name eth3")
			g.addressed("eth3")
		}
		off := []string{"tapgate_tap_in is not attached", "tapgate_tap_out is not attached"}
		there()
		back()
		if kind == loader.AttachClsact {
			g.wantProblems(off...)
			g.apply(example)
		}
		g.wantProblems()
		g.copies("moved away and back")

		there()
		told := []string{tapMoved}
		if kind == loader.AttachTCX {
			told = append(told, "eth3 was moved to another network namespace with tapgate_tap_in on it: detached")
		}
		g.wantProblems(told...)
		g.wantProblems(tapMoved)
		if r := g.tapgateIn(example, "apply", "-f", "-"); r.code != 2 || !strings.Contains(r.stderr, `stdin:4:27: no interface "eth3"`) {
			t.Errorf("apply with eth3 away: %s", r)
		}
		back()
		g.wantProblems(off...)
		g.apply(example)
		g.wantProblems()
		g.copies("moved away, missed and back")
		g.must("detach")
		g.nothingLeft()
	})
}

// nothingLeft fails if the gateway has programs or filters of ours, or pins.
func (g *gateway) nothingLeft() {
	g.t.Helper()
	for _, path := range tree(g.t, g.bpffs) { // some kernels have files of their own there
		if strings.HasPrefix(path, g.bpffs+"/tapgate") {
			g.t.Errorf("left in the BPF filesystem: %s", path)
		}
	}
	for _, h := range []*lab.Host{g.Gateway, g.Mgmt} {
		for what, text := range g.programsOf(h) {
			if strings.Contains(text, "tapgate") {
				g.t.Errorf("left on %s: %s", what, text)
			}
		}
	}
}

// programsOf lists the TC programs of a host's interfaces.
func (g *gateway) programsOf(h *lab.Host) listings {
	g.t.Helper()
	all := listings{}
	ctx := g.Context()
	out, err := h.Command(ctx, "ip", "-o", "link").Output()
	if err != nil {
		g.t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(strings.TrimSuffix(strings.Fields(line)[1], ":"), "@")
		for i, direction := range []string{"ingress", "egress"} {
			what := h.Name + " " + name + " " + direction
			filters, err := h.Command(ctx, "tc", "filter", "show", "dev", name, direction).Output()
			if err != nil {
				g.t.Fatal(err)
			}
			all[what] = string(filters) + strings.Join(g.tcxPrograms(h, name, i == 1), " ")
		}
	}
	return all
}

// A tapped interface that was moved away keeps its TCX program, which knows
// interfaces by number and cannot ask for its namespace: until the next command,
// which takes it off, it does over there what it did here. Filters do not move.
func TestHygieneDeviceMovedForGood(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newTapped(t, kind)
		// Over there an interface has the number of our dmz interface.
		g.ip(g.Mgmt, "link add decoy index "+strconv.Itoa(g.Gateway.Interface("eth2").Index)+" type veth peer name lure")
		g.ip(g.Mgmt, "link set decoy up")
		g.ip(g.Mgmt, "link set lure up")
		g.ip(g.Gateway, "link set eth3 netns "+g.Mgmt.Name)
		g.ip(g.Mgmt, "link set eth3 up")
		if kind == loader.AttachTCX {
			g.wantProblems(tapMoved, "detached from it")
		}
		lure, err := g.Mgmt.Capture("lure", lab.Incoming)
		if err != nil {
			t.Fatal(err)
		}
		moved, err := g.Mgmt.Capture("eth3", lab.Incoming)
		if err != nil {
			t.Fatal(err)
		}
		frame := oddFrame(1)
		if err := g.Servers[0].Send(frame); err != nil {
			t.Fatal(err)
		}
		if _, err := moved.WaitFor(func(frames []lab.Frame) bool {
			return slices.ContainsFunc(frames, func(f lab.Frame) bool { return string(f.Data) == string(frame) })
		}, patience); err != nil {
			t.Fatal(err)
		}
		frames, err := lure.Stop()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames {
			if kind, _ := f.EtherType(); kind == 0x88b5 {
				t.Errorf("a copy was sent into a network of another namespace: %x", f.Data)
			}
		}
		g.wantProblems(tapMoved)
		if r := g.tapgateIn(withoutEth3, "apply", "-f", "-"); r.code != 0 {
			t.Errorf("apply without eth3: %s", r)
		}
		g.wantProblems()
		for what, text := range g.programsOf(g.Mgmt) {
			if strings.Contains(text, "tapgate") {
				t.Errorf("still on %s: %s", what, text)
			}
		}
		g.must("detach")
		g.nothingLeft()
	})
}

// oddFrame is one that no stack answers.
func oddFrame(n byte) []byte {
	return append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, n, 0x88, 0xb5}, make([]byte, 60)...)
}

// A dmz interface that was moved away drops nothing over there (by TCX: once a
// command has been run, see above), and production does not notice.
func TestHygieneDMZDeviceMoved(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newTapped(t, kind)
		g.ip(g.Gateway, "link set eth2 netns "+g.Mgmt.Name)
		g.ip(g.Mgmt, "link set eth2 up")
		g.ip(g.Mgmt, "addr add 192.168.4.1/24 dev eth2")
		if kind == loader.AttachTCX {
			g.wantProblems("interface eth2 is not there any more", "eth2 was moved to another network namespace with tapgate_dmz_in on it: detached")
		}
		if n, err := g.Sensor.Ping(g.Context(), g.Mgmt.Addr, 1); err != nil || n != 1 {
			t.Errorf("in its new namespace the former dmz interface does not pass a ping: %d answered, %v", n, err)
		}
		if n, err := g.Servers[0].Ping(g.Context(), g.Outside[0].Addr, 2); err != nil || n != 2 {
			t.Errorf("without dmz interface %d of 2 pings are answered, %v", n, err)
		}
		g.wantProblems("interface eth2 is not there any more")
		g.checkLedgers()
		if m := g.mirror("ids"); m.Skipped["clone_error"].Packets == 0 {
			t.Errorf("copies to an interface that is gone are not told: %+v", m.Ledger)
		}
		g.must("detach")
		g.nothingLeft()
	})
}

// It comes back, and meanwhile another interface has its number.
func TestHygieneDeviceBackWithAnotherIndex(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newTapped(t, kind)
		index := strconv.Itoa(g.Gateway.Interface("eth3").Index)
		g.ip(g.Gateway, "link set eth3 netns "+g.Mgmt.Name)
		g.ip(g.Gateway, "link add other index "+index+" type veth peer name another")
		g.ip(g.Mgmt, "link set eth3 netns "+g.Gateway.Name)
		g.addressed("eth3")
		g.wantProblems("its index " + index + " belongs to other")
		g.apply(example)
		g.wantProblems()
		g.copies("back with another index")
		for what, text := range g.programsOf(g.Gateway) {
			if strings.Contains(what, "other ") && strings.Contains(text, "tapgate") {
				t.Errorf("%s: %s", what, text)
			}
		}
		g.must("detach")
		g.nothingLeft()
	})
}

func TestHygieneDeviceMadeAgain(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		for _, same := range []bool{false, true} {
			g := newTapped(t, kind)
			g.ip(g.Gateway, "link del eth3")
			g.wantProblems(tapMoved)
			g.recable(g.Servers[0], "eth3", same)
			if same {
				g.wantProblems("tapgate_tap_in is not attached", "tapgate_tap_out is not attached")
			} else {
				g.wantProblems("interface eth3 is another one now")
			}
			g.apply(example)
			g.wantProblems()
			g.copies("the tapped interface was made again")

			g.ip(g.Gateway, "link del eth2")
			g.wantProblems("interface eth2 is not there any more")
			g.recable(g.Sensor, "eth2", same)
			g.apply(example)
			g.wantProblems()
			g.resolved()
			g.copies("the dmz interface was made again")
			if features := g.inGateway("ethtool", "-k", "eth2"); !strings.Contains(features, "tx-checksumming: off") {
				t.Errorf("checksum offload of the new dmz interface is not off:\n%s", features)
			}
			g.must("detach")
			g.nothingLeft()
			if features := g.inGateway("ethtool", "-k", "eth2"); !strings.Contains(features, "tx-checksumming: on") {
				t.Errorf("checksum offload of the new dmz interface was not put back:\n%s", features)
			}
		}
	})
}

func TestHygieneDeviceRenamed(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t, lab.RoutedOutside())
		g.kind = kind
		g.exchange()
		before := g.list()
		g.apply(example)
		g.resolved()
		rename := func(from, to string) {
			g.ip(g.Gateway, "link set "+from+" down")
			g.ip(g.Gateway, "link set "+from+" name "+to)
			g.ip(g.Gateway, "link set "+to+" up")
		}
		rename("eth3", "lan0")
		rename("eth2", "ids0")
		g.wantProblems("interface eth3 is called lan0 now", "interface eth2 is called ids0 now")
		g.copies("renamed")
		if r := g.tapgateIn(example, "apply", "-f", "-"); r.code != 2 || !strings.Contains(r.stderr, `no interface "eth3"; there are: `) || !strings.Contains(r.stderr, "lan0") {
			t.Errorf("apply with the old name: %s", r)
		}
		g.apply(strings.NewReplacer("eth3", "lan0", "eth2", "ids0").Replace(example))
		g.wantProblems()
		g.copies("renamed and applied")
		g.must("detach")
		g.nothingLeft()
		rename("lan0", "eth3")
		rename("ids0", "eth2")
		after := g.list()
		for what := range before { // the kernel forgets IPv6 addresses and routes of links that go down
			if !strings.HasPrefix(what, "ethtool") && what != "tc -j qdisc show" {
				delete(before, what)
				delete(after, what)
			}
		}
		for what := range after {
			if _, ok := before[what]; !ok {
				delete(after, what)
			}
		}
		if d := before.difference(after); d != "" {
			t.Errorf("after detach: %s", d)
		}
	})
}
