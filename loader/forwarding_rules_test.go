package loader

import (
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestVRFRefused: zones cannot be judged in a VRF; what only copies can be there.
func TestVRFRefused(t *testing.T) {
	vrf := &netlink.Vrf{LinkAttrs: netlink.LinkAttrs{Name: "blue", Index: 10, EncapType: "ether"}}
	port := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth3", Index: 3, MasterIndex: 10, EncapType: "ether", HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}
	topo := &topology{links: []netlink.Link{port, vrf}, byIndex: map[int]netlink.Link{3: port, 10: vrf}, addrs: map[int][]address{}}
	r := &resolver{topo: topo, cfg: Config{NAT: &NAT{}}}
	m := r.newMember(port, Zone{Name: "internal", Role: RoleInternal}, "zones.internal.interfaces[0]")
	if why := r.natless(m); !strings.Contains(why, `"eth3" is in VRF "blue"`) || !strings.Contains(why, "ip link set dev eth3 nomaster") {
		t.Errorf("refused with %q", why)
	}
	if why := topo.untapable(port); why != "" {
		t.Errorf("as a tap: %s", why)
	}
	if why := topo.enslaved([]ingress{3}); why != `"eth3" is in VRF "blue"` {
		t.Errorf("forwarding: %q", why)
	}
	if why := topo.enslaved([]ingress{10, 4}); why != "" {
		t.Errorf("of interfaces in none: %q", why)
	}
}

// TestRuleAsks: attributes as "ip rule" writes them.
func TestRuleAsks(t *testing.T) {
	rule := func(family byte, attrs ...byte) []byte {
		return append(append([]byte{family}, make([]byte, unix.SizeofRtMsg-1)...), attrs...)
	}
	priority := []byte{8, 0, 6, 0, 5, 0, 0, 0}
	for want, message := range map[string][]byte{
		"": rule(unix.AF_INET, priority...),
		`"ip rule" has a rule (5) that asks for the mark 0x0`:  rule(unix.AF_INET, append(priority, 8, 0, 16, 0, 1, 0, 0, 0)...),
		`"ip -6 rule" has a rule (5) that asks for the VRF`:    rule(unix.AF_INET6, append(priority, 5, 0, 19, 0, 1, 0, 0, 0)...),
		`"ip -6 rule" has a rule (5) that asks for the tunnel`: rule(unix.AF_INET6, append(priority, 12, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 9)...),
		`"ip rule" has a rule (5) that asks for the mark 0x7`:  rule(unix.AF_INET, append(priority, 8, 0, 10, 0, 7, 0, 0, 0)...),
	} {
		if got := ruleAsks(message); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := ruleAsks([]byte{2}); got != "" {
		t.Errorf("of half a message: %q", got)
	}
}
