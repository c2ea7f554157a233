package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"tapgate/loader"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// Why copies do not arrive is told, as far as the gateway can see it, and
// nothing is told of a gateway that is well.
func TestMendedStatusTellsWhy(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newTapped(t, kind)
		one := func(when, want string) {
			t.Helper()
			eventually(t, func() string {
				got := g.status().Problems
				if want == "" && len(got) == 0 || want != "" && len(got) == 1 && strings.Contains(got[0], want) {
					return ""
				}
				return fmt.Sprintf("%s: status tells %q, want %q", when, got, want)
			})
		}
		one("healthy", "")
		gw, sensor := g.Gateway, g.Sensor
		for _, c := range []struct {
			name        string
			host        *lab.Host
			break_, fix []string
			want        string
		}{
			{"link down", gw, []string{"ip link set eth2 down"}, []string{"ip link set eth2 up"}, "interface eth2 is down: the copies that leave by it are lost"},
			{"no carrier", sensor, []string{"ip link set eth0 down"}, []string{"ip link set eth0 up"}, "interface eth2 has no carrier: the copies that leave by it are lost"},
			{"MTU", gw, []string{"ip link set eth2 mtu 1400"}, []string{"ip link set eth2 mtu 1500"}, "the MTU of eth2 is 1400, that of eth3 is 1500: larger packets are skipped as too_big"},
			{"address", gw, []string{"ip addr del 192.168.4.1/24 dev eth2"}, []string{"ip addr add 192.168.4.1/24 dev eth2"},
				"interface eth2 does not have the address 192.168.4.1 any more, by which next hops are asked for: apply again"},
			{"checksum", gw, []string{"ethtool -K eth2 tx on"}, []string{"ethtool -K eth2 tx off"},
				"interface eth2 has tx-checksum-ip-generic"},
		} {
			for _, line := range c.break_ {
				inHost(t, c.host, words(line)[0], words(line)[1:]...)
			}
			one(c.name, c.want)
			for _, line := range c.fix {
				inHost(t, c.host, words(line)[0], words(line)[1:]...)
			}
			one(c.name+", repaired", "")
		}
		// The next hop falls silent while there is something to copy.
		inHost(t, sensor, "ip", "link", "set", "eth0", "arp", "off")
		inHost(t, sensor, "ip", "addr", "del", sensor.Interfaces[0].Addr.String(), "dev", "eth0")
		eventually(t, func() string {
			if _, err := g.Servers[0].Ping(g.Context(), g.Outside[0].Addr, 1); err != nil {
				t.Fatal(err)
			}
			got := g.status().Problems
			if len(got) == 1 && strings.Contains(got[0], "mirror ids: via 192.168.4.2 does not answer: its copies are skipped as unresolved") {
				return ""
			}
			return fmt.Sprintf("next hop silent: status tells %q", got)
		})
		inHost(t, sensor, "ip", "addr", "add", sensor.Interfaces[0].Addr.String(), "dev", "eth0")
		inHost(t, sensor, "ip", "link", "set", "eth0", "arp", "on")
		eventually(t, func() string {
			if _, err := g.Servers[0].Ping(g.Context(), g.Outside[0].Addr, 1); err != nil {
				t.Fatal(err)
			}
			if got := g.status().Problems; len(got) > 0 {
				return fmt.Sprintf("next hop answers again: status tells %q", got)
			}
			return ""
		})
		g.must("detach")
		g.nothingLeft()
	})
}

// A next hop that never answered is a problem from the start.
func TestMendedStatusOfASilentSensor(t *testing.T) {
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside(), lab.SilentSensor())
	g.apply(example)
	g.wantProblems("mirror ids: via 192.168.4.2 does not answer: its copies are skipped as unresolved")
}

// Programs that somebody took off their hooks come back with the next apply,
// which tells so, once and of no others.
func TestMendedAttachedAgain(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t, lab.RoutedOutside())
		g.kind = kind
		r := g.tapgateIn(example, "apply", "-f", "-")
		const again = " again, where it was missing"
		if r.code != 0 || strings.Contains(r.stdout, again) {
			t.Errorf("the first apply: %s", r)
		}
		for _, c := range []struct{ ifname, direction, program string }{
			{"eth3", "ingress", "tapgate_tap_in"}, {"eth3", "egress", "tapgate_tap_out"},
			{"eth2", "ingress", "tapgate_dmz_in"}, {"eth2", "egress", "tapgate_dmz_out"},
		} {
			if kind == loader.AttachTCX {
				pin := filepath.Join(g.stateDir(), "links", strconv.Itoa(g.Gateway.Interface(c.ifname).Index), c.program)
				if out, err := exec.Command("bpftool", "link", "detach", "pinned", pin).CombinedOutput(); err != nil {
					t.Fatalf("bpftool link detach: %v: %s", err, out)
				}
			} else {
				inHost(t, g.Gateway, "tc", "filter", "del", "dev", c.ifname, c.direction)
			}
			g.wantProblems(fmt.Sprintf("%s is not attached to %q %s: apply again", c.program, c.ifname, c.direction))
			r := g.tapgateIn(example, "apply", "-f", "-")
			want := fmt.Sprintf("%s attached to %q %s%s", c.program, c.ifname, c.direction, again)
			if r.code != 0 || !strings.Contains(r.stdout, want) || strings.Count(r.stdout, again) != 1 {
				t.Errorf("apply, want %q: %s", want, r)
			}
			if r := g.tapgateIn(example, "apply", "-f", "-"); r.code != 0 || strings.Contains(r.stdout, again) {
				t.Errorf("the apply after it: %s", r)
			}
			g.wantProblems()
		}
		g.resolved()
		g.copies("attached again")
		g.must("detach")
		g.nothingLeft()
	})
}

// nexthops are the keys of that map: addresses of ours and of sensors.
func (g *gateway) nexthops() map[string]bool {
	g.t.Helper()
	m := pinnedMap(g.t, filepath.Join(g.stateDir(), "maps", "tg_nexthops"))
	defer m.Close()
	all := map[string]bool{}
	var key, value []byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		all[fmt.Sprintf("%x", key)] = true
	}
	if err := it.Err(); err != nil {
		g.t.Fatal(err)
	}
	return all
}

// Addresses that the dmz interface has lost since are nobody's: questions for
// them are dropped.
func TestMendedAddressesThatWent(t *testing.T) {
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside(), lab.SecondInternal())
	g.apply(example)
	first := g.nexthops()
	ask := func() (passed bool) {
		t.Helper()
		before := g.inReasons()
		// Of a sensor's own MAC and address it would be an announcement.
		frame := pkt.ARPRequest(net.HardwareAddr{2, 0, 0, 0, 0, 9}, netip.MustParseAddr("192.168.4.9"), netip.MustParseAddr("192.168.4.77"))
		if err := g.Sensor.Send(frame); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the question is counted", func() bool {
			now := g.inReasons()
			passed = now["pass_neighbour_question"] > before["pass_neighbour_question"]
			return passed || now["drop_from_dmz"] > before["drop_from_dmz"]
		})
		return passed
	}
	if ask() {
		t.Error("a question for an address of nobody passes")
	}
	g.ip(g.Gateway, "addr add 192.168.4.77/24 dev eth2")
	g.apply(example)
	if now := g.nexthops(); len(now) != len(first)+1 || !ask() {
		t.Errorf("with one address more there are %d next hops, before %d", len(now), len(first))
	}
	g.ip(g.Gateway, "addr del 192.168.4.77/24 dev eth2")
	g.apply(example)
	if now := g.nexthops(); fmt.Sprint(now) != fmt.Sprint(first) {
		t.Errorf("without it there are\n%v, before\n%v", now, first)
	}
	if ask() {
		t.Error("a question for an address that went passes")
	}
	// Those of an interface that is no longer in the dmz go as well.
	elsewhere := strings.NewReplacer("[eth2]", "[eth5]", "192.168.4.2", "192.168.6.2").Replace(example)
	g.apply(elsewhere)
	for key := range g.nexthops() {
		if first[key] {
			t.Errorf("next hop %s is still known", key)
		}
	}
	g.apply(example)
	if now := g.nexthops(); fmt.Sprint(now) != fmt.Sprint(first) {
		t.Errorf("back again there are\n%v, before\n%v", now, first)
	}
}
