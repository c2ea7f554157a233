package loader

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

var resolveSpaces int

// resolveNetns makes a namespace with the given links ("ip -batch" lines), gone
// after the test.
func resolveNetns(t *testing.T, batch string) *namespace {
	t.Helper()
	resolveSpaces++
	name := fmt.Sprintf("tgres-%d-%d", os.Getpid(), resolveSpaces)
	resolveRun(t, "", "ip", "netns", "add", name)
	t.Cleanup(func() { resolveRun(t, "", "ip", "netns", "del", name) })
	resolveRun(t, batch, "ip", "-n", name, "-batch", "-")
	ns, err := openNamespace(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.close() })
	return ns
}

func resolveRun(t *testing.T, stdin string, command ...string) string {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

func resolveIn(t *testing.T, ns *namespace, cfg Config, force bool) (r *resolved, err error) {
	t.Helper()
	_ = ns.do(func() error {
		r, err = resolve(cfg, force)
		return nil
	})
	return r, err
}

// Each interface has a peer in the same namespace, which plays no part.
const gatewayLinks = `link add eth0 type veth peer name peer0
link add eth2 address 02:00:00:00:00:02 type veth peer name peer2
link add eth3 type veth peer name peer3
link add eth3.7 type veth peer name peer3.7
link add eth4 type veth peer name peer4
link add spare type veth peer name peer
link set eth2 addrgenmode none
link set peer0 up
link set peer2 up
link set peer up
addr add 203.0.113.1/24 dev eth0
addr add 192.168.4.1/24 dev eth2
addr add 2001:db8:4::8/64 dev eth2 nodad valid_lft 900 preferred_lft 0
addr add 2001:db8:4::1/64 dev eth2 nodad
addr add 2001:db8:4::9/64 dev eth2 nodad valid_lft 900 preferred_lft 0
addr add fe80::1/64 dev eth2 nodad
addr add 10.9.9.1 peer 10.9.9.2/32 dev eth2
addr add 192.168.3.1/24 dev eth3
addr add 192.168.5.1/24 dev eth4
addr add 192.168.44.1/24 dev spare
link set eth0 up
link set eth2 up
link set eth3 up
link set eth4 up
link set spare up
`

func gatewayConfig() Config {
	return Config{
		Zones: []Zone{
			{Name: "external", Role: RoleExternal, Interfaces: []string{"eth0"}},
			{Name: "internal", Role: RoleInternal, Interfaces: []string{"eth3", "eth3.7"}},
			{Name: "dmz", Role: RoleDMZ, Interfaces: []string{"eth2"}},
			{Name: "mgmt", Role: RoleMgmt, Interfaces: []string{"eth4"}},
		},
		Mirrors: []Mirror{{
			Name: "ids", Zones: []string{"internal"},
			Targets: []Target{{Via: netip.MustParseAddr("192.168.4.2")}, {L2: "eth2", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}}},
		}},
	}
}

func TestResolve(t *testing.T) {
	ns := resolveNetns(t, gatewayLinks)
	cfg := gatewayConfig()
	cfg.Mirrors = append(cfg.Mirrors, Mirror{Name: "all", Zones: []string{"internal", "mgmt", "external"}, Targets: []Target{
		{Via: netip.MustParseAddr("2001:db8:4::2")}, {Via: netip.MustParseAddr("fe80::2")},
		{Via: netip.MustParseAddr("::ffff:10.9.9.2")}, {L2: "eth2"},
	}})
	r, err := resolveIn(t, ns, cfg, false)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range r.members {
		names = append(names, fmt.Sprintf("%s %s %s %d %v", m.name, m.zone, m.role, m.mtu, m.up))
	}
	want := []string{
		"eth0 external external 1500 true", "eth3 internal internal 1500 true", "eth3.7 internal internal 1500 false",
		"eth2 dmz dmz 1500 true", "eth4 mgmt mgmt 1500 true",
	}
	if !reflect.DeepEqual(names, want) {
		t.Errorf("members %q, want %q", names, want)
	}
	eth2 := r.members[3]
	if eth2.mac.String() != "02:00:00:00:00:02" || eth2.index == 0 {
		t.Errorf("eth2 has MAC %s and index %d", eth2.mac, eth2.index)
	}
	for _, addr := range []string{"192.168.4.1/24", "2001:db8:4::1/64", "fe80::1/64", "10.9.9.1/32"} {
		if !slices.Contains(eth2.addrs, netip.MustParsePrefix(addr)) {
			t.Errorf("eth2 has %v, without %s", eth2.addrs, addr)
		}
	}
	if m := r.mirrors[1].members; len(m) != 4 || m[0].name != "eth3" || m[3].name != "eth0" {
		t.Errorf("mirror %q has members %v", r.mirrors[1].Name, m)
	}
	var ways []string
	for _, m := range r.mirrors {
		for _, target := range m.targets {
			ways = append(ways, fmt.Sprint(target.mirror, " ", target.device.name, " ", target.Via, " ", target.source))
		}
	}
	want = []string{
		"ids eth2 192.168.4.2 192.168.4.1", "ids eth2 invalid IP invalid IP", "all eth2 2001:db8:4::2 2001:db8:4::1",
		"all eth2 fe80::2 fe80::1", "all eth2 10.9.9.2 10.9.9.1", "all eth2 invalid IP invalid IP",
	}
	if !reflect.DeepEqual(ways, want) {
		t.Errorf("ways %q, want %q", ways, want)
	}
	if len(r.warnings) != 0 {
		t.Errorf("warnings: %q", r.warnings)
	}
}

// resolveCase changes gatewayConfig; each of want must be an error: its path and
// a part of its message, with nothing else beside them.
type resolveCase struct {
	name   string
	change func(c *Config)
	want   []string
}

func via(c *Config, addr string) { c.Mirrors[0].Targets[0].Via = netip.MustParseAddr(addr) }

func (tc resolveCase) run(t *testing.T, ns *namespace) {
	t.Run(tc.name, func(t *testing.T) {
		cfg := gatewayConfig()
		tc.change(&cfg)
		_, err := resolveIn(t, ns, cfg, false)
		checkProblems(t, err, tc.want)
	})
}

func checkProblems(t *testing.T, err error, want []string) {
	t.Helper()
	got := messages(err)
	if len(got) != len(want) {
		t.Errorf("%d problems, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for _, w := range want {
		path, part, _ := strings.Cut(w, "|")
		found := slices.ContainsFunc(got, func(g string) bool {
			return strings.HasPrefix(g, path+": ") && strings.Contains(g, part)
		})
		if !found {
			t.Errorf("no problem at %s with %q in:\n%s", path, part, strings.Join(got, "\n"))
		}
	}
	var ce *ConfigError
	if err != nil && !errors.As(err, &ce) {
		t.Errorf("%v is no ConfigError", err)
	}
}

func TestResolveNames(t *testing.T) {
	ns := resolveNetns(t, gatewayLinks)
	long := strings.Repeat("a", 33)
	for _, tc := range []resolveCase{
		{"nothing", func(c *Config) { *c = Config{} }, []string{"zones|there are no zones"}},
		{"zone empty", func(c *Config) { c.Zones[3].Name = "" }, []string{"zones|zone without a name"}},
		{"zone odd", func(c *Config) { c.Zones[3].Name = "Mgmt 1" }, []string{`zones.Mgmt 1|zone name "Mgmt 1": use a-z`}},
		{"zone digit first", func(c *Config) { c.Zones[3].Name = "1mgmt" }, []string{"zones.1mgmt|a letter first"}},
		{"zone long", func(c *Config) { c.Zones[3].Name = long }, []string{"zones." + long + "|32 characters"}},
		{"zone twice", func(c *Config) { c.Zones[3].Name = "external" }, []string{`zones.external|two zones named "external"`}},
		{"role", func(c *Config) { c.Zones[3].Role = "guest" }, []string{`zones.mgmt.role|unknown role "guest": it is external, internal, dmz or mgmt`}},
		{"no interfaces", func(c *Config) { c.Zones[3].Interfaces = nil }, []string{`zones.mgmt.interfaces|zone "mgmt" has no interfaces`}},
		{"mirror empty", func(c *Config) { c.Mirrors[0].Name = "" }, []string{"mirrors[0].name|mirror without a name"}},
		{"mirror odd", func(c *Config) { c.Mirrors[0].Name = "a/b" }, []string{`mirrors[0].name|mirror name "a/b"`}},
		{"mirror twice", func(c *Config) { c.Mirrors = append(c.Mirrors, c.Mirrors[0]) }, []string{`mirrors[1].name|two mirrors named "ids"`}},
		{"several at once", func(c *Config) {
			c.Zones[0].Role = ""
			c.Zones[3].Interfaces[0] = "eth9"
			c.Mirrors[0].Zones = []string{"nowhere"}
		}, []string{`zones.external.role|unknown role ""`, `zones.mgmt.interfaces[0]|no interface "eth9"`, `mirrors[0].zones[0]|no zone "nowhere"; there are: external, internal, dmz, mgmt`}},
	} {
		tc.run(t, ns)
	}
}

func TestResolveMirrors(t *testing.T) {
	ns := resolveNetns(t, gatewayLinks)
	for _, tc := range []resolveCase{
		{"no zones", func(c *Config) { c.Mirrors[0].Zones = nil }, []string{`mirrors[0].zones|mirror "ids" taps no zone`}},
		{"zone twice", func(c *Config) { c.Mirrors[0].Zones = []string{"internal", "internal"} }, []string{`mirrors[0].zones[1]|zone "internal" is there twice`}},
		{"taps dmz", func(c *Config) { c.Mirrors[0].Zones = []string{"internal", "dmz"} }, []string{`mirrors[0].zones[1]|would copy the copies`}},
		{"no targets", func(c *Config) { c.Mirrors[0].Targets = nil }, []string{`mirrors[0].targets|mirror "ids" has no targets`}},
		{"target twice", func(c *Config) {
			c.Mirrors[0].Targets = append(c.Mirrors[0].Targets, Target{Via: netip.MustParseAddr("::ffff:192.168.4.2")})
		}, []string{`mirrors[0].targets[2]|this target twice`}},
		{"empty target", func(c *Config) { c.Mirrors[0].Targets[1] = Target{} }, []string{"mirrors[0].targets[1]|either via (address of the sensor) or l2"}},
		{"both", func(c *Config) { c.Mirrors[0].Targets[0].L2 = "eth2" }, []string{"mirrors[0].targets[0]|either via"}},
		{"mac with via", func(c *Config) { c.Mirrors[0].Targets[0].MAC = c.Mirrors[0].Targets[1].MAC }, []string{"mirrors[0].targets[0].mac|goes with l2 only"}},
		{"short mac", func(c *Config) { c.Mirrors[0].Targets[1].MAC = net.HardwareAddr{2, 0, 0, 0} }, []string{"mirrors[0].targets[1].mac|02:00:00:00 has 4 bytes"}},
		{"zero mac", func(c *Config) { c.Mirrors[0].Targets[1].MAC = make(net.HardwareAddr, 6) }, []string{"mirrors[0].targets[1].mac|00:00:00:00:00:00 is nobody's"}},
		{"no dmz", func(c *Config) { c.Zones[2].Role = RoleMgmt; c.Mirrors[0].Targets = c.Mirrors[0].Targets[:1] }, []string{"zones|no zone has the role dmz"}},
		{"dmz interface missing", func(c *Config) { c.Zones[2].Interfaces[0] = "eth9" }, []string{`zones.dmz.interfaces[0]|no interface "eth9"`}},
		{"l2 missing", func(c *Config) { c.Mirrors[0].Targets[1].L2 = "eth9" }, []string{`mirrors[0].targets[1].l2|no interface "eth9"; dmz interfaces: eth2`}},
		{"l2 in no zone", func(c *Config) { c.Mirrors[0].Targets[1].L2 = "spare" }, []string{`mirrors[0].targets[1].l2|"spare" is in no zone`}},
		{"l2 on the tapped", func(c *Config) { c.Mirrors[0].Targets[1].L2 = "eth3" }, []string{`mirrors[0].targets[1].l2|"eth3" is in zone "internal" (role internal)`}},
		{"via off-link", func(c *Config) { via(c, "192.168.40.2") }, []string{"mirrors[0].targets[0].via|192.168.40.2 is on no dmz network (eth2 192.168.4.0/24 10.9.9.2/32 2001:db8:4::/64)"}},
		{"via on the tapped", func(c *Config) { via(c, "192.168.3.2") }, []string{`mirrors[0].targets[0].via|but on that of "eth3", which is in zone "internal"`}},
		{"via own", func(c *Config) { via(c, "192.168.4.1") }, []string{`mirrors[0].targets[0].via|this machine's own address (on "eth2")`}},
		{"via own elsewhere", func(c *Config) { via(c, "192.168.44.1") }, []string{`mirrors[0].targets[0].via|this machine's own address (on "spare")`}},
		{"via network", func(c *Config) { via(c, "192.168.4.0") }, []string{"mirrors[0].targets[0].via|not the address of one machine"}},
		{"via broadcast", func(c *Config) { via(c, "192.168.4.255") }, []string{"mirrors[0].targets[0].via|not the address of one machine"}},
		{"via everywhere", func(c *Config) { via(c, "255.255.255.255") }, []string{"mirrors[0].targets[0].via|not the address of one machine"}},
		{"via multicast", func(c *Config) { via(c, "ff02::1") }, []string{"mirrors[0].targets[0].via|not the address of one machine"}},
		{"via unspecified", func(c *Config) { via(c, "0.0.0.0") }, []string{"mirrors[0].targets[0].via|not the address of one machine"}},
		{"via with scope", func(c *Config) { via(c, "fe80::2%eth2") }, []string{"mirrors[0].targets[0].via|write fe80::2 without %eth2"}},
	} {
		tc.run(t, ns)
	}
}

func TestResolveSeveralDMZ(t *testing.T) {
	ns := resolveNetns(t, gatewayLinks+"link add dmz.b type veth peer name peerb\nlink set dmz.b up\n"+
		"addr add 192.168.4.129/25 dev dmz.b\naddr add fe80::b/64 dev dmz.b nodad\naddr add 192.168.6.1/24 dev dmz.b\n")
	two := func(c *Config) { c.Zones[2].Interfaces = append(c.Zones[2].Interfaces, "dmz.b") }
	for _, tc := range []resolveCase{
		{"both reach it", func(c *Config) { two(c); via(c, "192.168.4.130") }, []string{`mirrors[0].targets[0].via|networks of "eth2" and "dmz.b" alike`}},
		{"link-local", func(c *Config) { two(c); via(c, "fe80::2") }, []string{"mirrors[0].targets[0].via|fe80::2 is link-local, and there are several dmz interfaces"}},
		{"the second", func(c *Config) { two(c); via(c, "192.168.6.2") }, nil},
	} {
		tc.run(t, ns)
	}
}

func TestResolveInterfaces(t *testing.T) {
	ns := resolveNetns(t, gatewayLinks+`link add veth1 type veth peer name veth2
link property add dev spare altname long-name-of-spare
tuntap add dev tun0 mode tun
link add br0 type bridge
link add port type veth peer name peerp
link set port master br0
`)
	replace := func(zone int, names ...string) func(c *Config) {
		return func(c *Config) { c.Zones[zone].Interfaces = names }
	}
	for _, tc := range []resolveCase{
		{"missing", replace(1, "eth9"), []string{`zones.internal.interfaces[0]|no interface "eth9"; there are: peer0, eth0, peer2, eth2, peer3,`}},
		{"two zones", replace(3, "eth3"), []string{`zones.mgmt.interfaces[0]|"eth3" is already in zone "internal": an interface has one zone`}},
		{"twice in a zone", replace(3, "eth4", "eth4"), []string{`zones.mgmt.interfaces[1]|interface "eth4" is listed twice`}},
		{"two names of one", replace(3, "spare", "long-name-of-spare"), []string{`zones.mgmt.interfaces[1]|interface "long-name-of-spare" is listed twice: "spare" is another name of it`}},
		{"loopback", replace(3, "lo"), []string{`zones.mgmt.interfaces[0]|"lo" is the loopback`}},
		{"no Ethernet, tapped", replace(1, "tun0"), []string{`zones.internal.interfaces[0]|"tun0" (type tuntap) has no Ethernet frames (link/none)`}},
		{"no Ethernet, dmz", func(c *Config) {
			replace(2, "eth2", "tun0")(c)
		}, []string{`zones.dmz.interfaces[1]|"tun0" (type tuntap) has no Ethernet frames`}},
		{"no Ethernet, uplink", replace(0, "tun0"), nil},
		{"bridge port", replace(1, "port"), []string{`zones.internal.interfaces[0]|"port" is a port of bridge "br0", where its packets are routed: take "br0"`}},
		{"veth pair", replace(1, "veth1", "veth2"), nil},
	} {
		tc.run(t, ns)
	}

	cfg := gatewayConfig()
	cfg.Zones[1].Interfaces = []string{"br0"}
	cfg.Zones[2].Interfaces = []string{"eth2", "veth1", "spare"}
	resolveRun(t, "link set veth1 up\nlink set spare down\n", "ip", "-n", fmt.Sprintf("tgres-%d-%d", os.Getpid(), resolveSpaces), "-batch", "-")
	r, err := resolveIn(t, ns, cfg, false)
	if err != nil {
		t.Fatal(err)
	}
	for i, part := range []string{"br0\" is a bridge: its tap shows what the bridge routes", "veth1\" has no carrier", "spare\" is down"} {
		if len(r.warnings) != 3 || !strings.Contains(r.warnings[i], part) {
			t.Errorf("warnings %q lack %q", r.warnings, part)
		}
	}
}

func TestResolveStacking(t *testing.T) {
	ns := resolveNetns(t, gatewayLinks+`link add link eth3 name m3 type macvlan
link add link eth2 name m2 type macvlan
link add link eth4 name m4 type macvlan
link add br0 type bridge
link set spare master br0
link add deep type vxlan id 1 dev m3 remote 192.168.3.9 dstport 4789
link add route type vxlan id 2 remote 192.168.3.9 dstport 4790
`)
	add := func(zone int, names ...string) func(c *Config) {
		return func(c *Config) { c.Zones[zone].Interfaces = append(c.Zones[zone].Interfaces, names...) }
	}
	for _, tc := range []resolveCase{
		{"on tapped", add(0, "m3"), []string{`zones.external.interfaces[1]|"m3" (macvlan) is stacked on "eth3" of zone "internal"`}},
		{"two deep", add(1, "deep"), []string{`zones.internal.interfaces[2]|"deep" (vxlan) is stacked on "eth3"`}},
		{"on dmz", add(3, "m2"), []string{`zones.mgmt.interfaces[1]|"m2" (macvlan) is stacked on "eth2" of zone "dmz"`}},
		{"dmz by a route over tapped", add(2, "route"), []string{`zones.dmz.interfaces[1]|"route" (vxlan) is stacked on "eth3"`}},
		{"neither counts", add(3, "m4"), nil},
		{"bridge and its port", add(1, "br0", "spare"), []string{`zones.internal.interfaces[3]|"spare" is a port of bridge "br0"`}},
	} {
		tc.run(t, ns)
	}
}

// What this kernel may not have as interfaces, from netlink's structs.
func TestTopologyUnder(t *testing.T) {
	attrs := func(index, parent, master int) netlink.LinkAttrs {
		return netlink.LinkAttrs{Index: index, Name: fmt.Sprintf("if%d", index), ParentIndex: parent, MasterIndex: master, NetNsID: -1}
	}
	away := attrs(9, 1, 0)
	away.NetNsID = 3
	topo := &topology{byIndex: map[int]netlink.Link{}}
	for _, l := range []netlink.Link{
		&netlink.Device{LinkAttrs: attrs(1, 0, 3)}, &netlink.Device{LinkAttrs: attrs(2, 0, 3)},
		&netlink.Bond{LinkAttrs: attrs(3, 0, 0)}, &netlink.Vlan{LinkAttrs: attrs(4, 3, 0)},
		&netlink.Vlan{LinkAttrs: attrs(5, 4, 0)}, &netlink.Macvlan{LinkAttrs: attrs(6, 2, 0)},
		&netlink.Veth{LinkAttrs: attrs(7, 8, 0)}, &netlink.Veth{LinkAttrs: attrs(8, 7, 10)},
		&netlink.Vlan{LinkAttrs: away}, &netlink.Vrf{LinkAttrs: attrs(10, 0, 0)},
		&netlink.Gretap{LinkAttrs: attrs(11, 0, 0), Link: 4},
	} {
		topo.links = append(topo.links, l)
		topo.byIndex[l.Attrs().Index] = l
	}
	for index, want := range map[int][]int{
		1: nil, 3: {1, 2}, 4: {1, 2, 3}, 5: {1, 2, 3, 4}, 6: {2}, 7: nil, 8: nil, 9: nil, 10: {8}, 11: {1, 2, 3, 4},
	} {
		got := slices.Sorted(maps.Keys(topo.under(index)))
		if !slices.Equal(got, want) {
			t.Errorf("under %d: %v, want %v", index, got, want)
		}
	}
	if why := topo.unfit(topo.byIndex[1]); !strings.Contains(why, `"if1" is a port of bond "if3"`) {
		t.Errorf("port of a bond: %q", why)
	}
	if why := topo.unfit(topo.byIndex[8]); why != "" {
		t.Errorf("an interface in a VRF is refused: %s", why)
	}
}

func TestResolveMTU(t *testing.T) {
	ns := resolveNetns(t, gatewayLinks+"link set eth3.7 mtu 9000\n")
	cfg := gatewayConfig()
	_, err := resolveIn(t, ns, cfg, false)
	part := `|the MTU of "eth2" is 1500, but packets of the tapped "eth3.7" have up to 9000 bytes: "ip link set eth2 mtu 9000"`
	checkProblems(t, err, []string{"mirrors[0].targets[0].via" + part, "mirrors[0].targets[1].l2" + part})

	r, err := resolveIn(t, ns, cfg, true)
	if err != nil {
		t.Fatalf("with force: %v", err)
	}
	if len(r.warnings) != 1 || !strings.Contains(r.warnings[0], "skipped as too_big") { // once for both targets
		t.Errorf("with force: warnings %q", r.warnings)
	}
}

func TestResolveLimits(t *testing.T) {
	// The same numbers as in the C, which are macros and so not in its types.
	abi, err := os.ReadFile("../headers/abi.h")
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]int{
		"MEMBERS": limitMembers, "MIRRORS": limitMirrors, "TARGETS": limitTargets, "COPIES": limitCopies, "NEXTHOPS": limitNexthops,
	} {
		if !strings.Contains(string(abi), fmt.Sprintf("#define TG_MAX_%s %d", name, n)) {
			t.Errorf("headers/abi.h has another TG_MAX_%s than %d", name, n)
		}
	}

	ns := resolveNetns(t, gatewayLinks)
	targets := func(first, n int) (list []Target) {
		for i := range n {
			list = append(list, Target{L2: "eth2", MAC: net.HardwareAddr{2, 1, 0, 0, byte((first + i) >> 8), byte(first + i)}})
		}
		return list
	}
	for _, tc := range []resolveCase{
		{"most copies", func(c *Config) { c.Mirrors[0].Targets = targets(0, 16) }, nil},
		{"copies", func(c *Config) {
			c.Mirrors[0].Targets = targets(0, 10)
			c.Mirrors = append(c.Mirrors, Mirror{Name: "b", Zones: []string{"internal"}, Targets: targets(0, 7)})
		}, []string{`mirrors[1].targets|with mirror "b" every packet of "eth3" is copied 17 times, more than the 16`,
			`mirrors[1].targets|"eth3.7" is copied 17 times`}},
		{"targets", func(c *Config) {
			c.Mirrors[0].Targets = targets(0, 257)
			c.Mirrors[0].Zones = []string{"external"}
		}, []string{"mirrors[0].targets|257 targets, more than the 256", "mirrors[0].targets|copied 257 times"}},
		{"mirrors", func(c *Config) {
			c.Mirrors = nil
			for i := range 65 {
				c.Mirrors = append(c.Mirrors, Mirror{Name: fmt.Sprintf("m%d", i), Zones: []string{[]string{"external", "internal", "mgmt"}[i%3]}, Targets: targets(i, 1)})
			}
		}, []string{"mirrors|65 mirrors are more than the 64", `mirrors[48].targets|copied 17 times`, `mirrors[49].targets|"eth3" is copied 17`,
			`mirrors[49].targets|"eth3.7" is copied 17`, `mirrors[50].targets|copied 17`}},
	} {
		tc.run(t, ns)
	}

	cfg := gatewayConfig()
	for i := range 253 {
		cfg.Zones[3].Interfaces = append(cfg.Zones[3].Interfaces, fmt.Sprintf("m%d", i))
	}
	_, err = resolveIn(t, ns, cfg, false)
	if got := messages(err)[0]; got != "zones: 258 interfaces are more than the 255 that a gateway can have" {
		t.Errorf("258 interfaces: %s", got)
	}
}
