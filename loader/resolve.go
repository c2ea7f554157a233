package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// The limits of headers/abi.h.
const (
	limitMembers  = 256
	limitMirrors  = 64
	limitTargets  = 256
	limitCopies   = 16
	limitNexthops = 1024
)

// member is an interface of a zone.
type member struct {
	name  string
	index int
	mac   net.HardwareAddr
	mtu   int
	zone  string
	role  Role
	addrs []netip.Prefix // ours, each with the length of its network
	up    bool

	path    string // in the configuration
	written string // its name there, which may be an alternative one
	called  string // its name before, if it has another one now
	absent  bool   // it is gone, and link is what is remembered of it
	link    netlink.Link
	known   []address
}

// target is a Target with the way to it.
type target struct {
	Target
	mirror string
	device *member    // dmz member that copies leave by
	source netip.Addr // our sender address for neighbour questions; via only
}

// resolvedMirror is a Mirror with the interfaces behind its names.
type resolvedMirror struct {
	Mirror
	members []*member
	targets []target
}

// resolved is a Config that this machine can do.
type resolved struct {
	zones    []Zone
	members  []*member
	mirrors  []resolvedMirror
	gateway  *resolvedGateway // nil: nothing is judged or translated
	warnings []string
}

// resolver collects problems, so that the user meets all of them at once.
type resolver struct {
	cfg   Config
	force bool
	topo  *topology
	// before is the generation in force, where its own configuration is applied again:
	// what is not there any more is taken as it was.
	before *record
	out    resolved
	errs   []error
}

// resolve finds the interfaces, addresses and ways of cfg in the namespace of
// the calling thread. Every problem is a *ConfigError; several are joined.
// force turns what is refused for the user's own good into warnings.
func resolve(cfg Config, force bool) (*resolved, error) {
	return resolveFrom(cfg, force, nil)
}

// resolveFrom is resolve with what a generation in force remembers, if it is of cfg.
func resolveFrom(cfg Config, force bool, before *record) (*resolved, error) {
	topo, err := readTopology()
	if err != nil {
		return nil, err
	}
	r := &resolver{cfg: cfg, force: force, topo: topo, before: before, out: resolved{zones: cfg.Zones}}
	r.checkZones()
	r.findMembers()
	r.checkStacking()
	r.checkMirrors()
	r.checkForwarding()
	r.checkGateway()
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	return &r.out, nil
}

func (r *resolver) fail(path, format string, args ...any) {
	r.errs = append(r.errs, configErrorf(path, format, args...))
}

func (r *resolver) warn(format string, args ...any) {
	w := fmt.Sprintf(format, args...)
	if !slices.Contains(r.out.warnings, w) { // targets may share what is warned of
		r.out.warnings = append(r.out.warnings, w)
	}
}

var goodName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`)

// checkName is for zones and mirrors: the names become flags, files and metric labels.
func (r *resolver) checkName(path, kind, name string, earlier []string) {
	switch {
	case name == "":
		r.fail(path, "%s without a name", kind)
	case !goodName.MatchString(name):
		r.fail(path, "%s name %q: use a-z, 0-9, _ and -, a letter first, 32 characters at most", kind, name)
	case slices.Contains(earlier, name):
		r.fail(path, "there are two %ss named %q; names are unique", kind, name)
	}
}

func zonePath(z Zone) string { return "zones." + z.Name }

func (r *resolver) checkZones() {
	if len(r.cfg.Zones) == 0 {
		r.fail("zones", "there are no zones: name the interfaces of the gateway by zone")
	}
	var names []string
	interfaces := 0
	for _, z := range r.cfg.Zones {
		path := zonePath(z)
		if z.Name == "" {
			path = "zones"
		}
		r.checkName(path, "zone", z.Name, names)
		names = append(names, z.Name)
		interfaces += len(z.Interfaces)

		switch z.Role {
		case RoleExternal, RoleInternal, RoleDMZ, RoleMgmt:
		default:
			r.fail(path+".role", "unknown role %q: it is external, internal, dmz or mgmt", z.Role)
		}
		if len(z.Interfaces) == 0 {
			r.fail(path+".interfaces", "zone %q has no interfaces", z.Name)
		}
	}
	// Counters of slot 0 are for interfaces outside the generation.
	if interfaces > limitMembers-1 {
		r.fail("zones", "%d interfaces are more than the %d that a gateway can have", interfaces, limitMembers-1)
	}
}

// tapped are the names of the zones that a mirror copies.
func (r *resolver) tapped(zone string) bool {
	return slices.ContainsFunc(r.cfg.Mirrors, func(m Mirror) bool { return slices.Contains(m.Zones, zone) })
}

func (r *resolver) findMembers() {
	taken := map[int]*member{}
	for _, z := range r.cfg.Zones {
		for i, name := range z.Interfaces {
			path := fmt.Sprintf("%s.interfaces[%d]", zonePath(z), i)
			l, remembered := r.topo.find(name), r.remembered(name)
			called, absent := "", false
			if l == nil && remembered != nil {
				l, absent = r.standIn(remembered)
				called = remembered.Interface
			}
			if l == nil {
				r.fail(path, "no interface %q; there are: %s (renamed or in another network namespace?)", name, r.topo.names())
				continue
			}
			if first := taken[l.Attrs().Index]; first != nil {
				r.failTaken(path, name, z, first)
				continue
			}
			m := r.newMember(l, z, path)
			m.written, m.called, m.absent = name, called, absent
			if remembered != nil {
				m.remember(remembered, r.cfg)
			}
			taken[m.index] = m
			why := r.unfitFor(l, z)
			if why == "" && r.cfg.gateway() {
				why = r.natless(m)
			}
			if why != "" {
				r.fail(path, "%s", why)
				continue
			}
			r.out.members = append(r.out.members, m)
			r.warnMember(m)
		}
	}
}

// failTaken is for an interface that has a place in the zones already.
func (r *resolver) failTaken(path, name string, z Zone, first *member) {
	switch {
	case first.zone != z.Name:
		r.fail(path, "interface %q is already in zone %q: an interface has one zone", name, first.zone)
	case first.written != name:
		r.fail(path, "interface %q is listed twice: %q is another name of it", name, first.written)
	default:
		r.fail(path, "interface %q is listed twice", name)
	}
}

func (r *resolver) newMember(l netlink.Link, z Zone, path string) *member {
	a := l.Attrs()
	m := &member{
		name: a.Name, index: a.Index, mac: a.HardwareAddr, mtu: a.MTU, zone: z.Name, role: z.Role,
		up: a.Flags&net.FlagUp != 0, path: path, link: l, known: r.topo.addrs[a.Index],
	}
	for _, addr := range m.known {
		m.addrs = append(m.addrs, addr.prefix)
	}
	return m
}

// unfitFor lets an uplink without Ethernet (ppp, wg) be where no copy starts or leaves.
func (r *resolver) unfitFor(l netlink.Link, z Zone) string {
	if (z.Role == RoleExternal || z.Role == RoleMgmt) && !r.tapped(z.Name) {
		return r.topo.unfit(l)
	}
	return r.topo.untapable(l)
}

func (r *resolver) warnMember(m *member) {
	if m.role == RoleDMZ {
		switch {
		case !m.up:
			r.warn("dmz interface %q is down: copies are refused until \"ip link set %s up\"", m.name, m.name)
		case !hasCarrier(m.link):
			r.warn("dmz interface %q has no carrier: copies are refused until its other side is up", m.name)
		}
	}
	if m.link.Type() == "bridge" && r.tapped(m.zone) {
		r.warn("interface %q is a bridge: its tap shows what the bridge routes, not what it switches between its ports", m.name)
	}
	if parent := r.macvlanParent(m); parent != "" {
		r.warn("interface %q is a macvlan on %q, which answers ARP for its addresses, too: hosts may send to %q, where nothing is copied or judged, "+
			"until \"sysctl -w net/ipv4/conf/%s/arp_ignore=1\"", m.name, parent, parent, parent)
	}
}

func hasCarrier(l netlink.Link) bool {
	const lowerUp = 0x10000 // IFF_LOWER_UP
	return l.Attrs().RawFlags&lowerUp != 0
}

// checkStacking refuses members whose packets pass at both, where that counts:
// they would be copied, judged or translated twice, or copies would pass a tap.
func (r *resolver) checkStacking() {
	counts := func(m *member) bool { return m.role == RoleDMZ || r.tapped(m.zone) || r.cfg.gateway() }
	for _, upper := range r.out.members {
		under := r.topo.under(upper.index)
		for _, lower := range r.out.members {
			if under[lower.index] && (counts(upper) || counts(lower)) {
				r.fail(upper.path, "%q (%s) is stacked on %q of zone %q, so packets pass at both: keep only one of them in the zones",
					upper.name, upper.link.Type(), lower.name, lower.zone)
			}
		}
	}
}

func (r *resolver) zone(name string) *Zone {
	for i := range r.cfg.Zones {
		if r.cfg.Zones[i].Name == name {
			return &r.cfg.Zones[i]
		}
	}
	return nil
}

func (r *resolver) zoneNames() string {
	var names []string
	for _, z := range r.cfg.Zones {
		names = append(names, z.Name)
	}
	return strings.Join(names, ", ")
}

func (r *resolver) checkMirrors() {
	if len(r.cfg.Mirrors) > limitMirrors {
		r.fail("mirrors", "%d mirrors are more than the %d that a gateway can have", len(r.cfg.Mirrors), limitMirrors)
	}
	if len(r.cfg.Mirrors) > 0 && !slices.ContainsFunc(r.cfg.Zones, func(z Zone) bool { return z.Role == RoleDMZ }) {
		r.fail("zones", "no zone has the role dmz: mirrors need the sensor's interface in one")
	}
	var names []string
	for i, m := range r.cfg.Mirrors {
		path := fmt.Sprintf("mirrors[%d]", i)
		r.checkName(path+".name", "mirror", m.Name, names)
		names = append(names, m.Name)
		rm := resolvedMirror{Mirror: m, members: r.mirrorMembers(path, m)}
		rm.targets = r.mirrorTargets(path, rm)
		r.out.mirrors = append(r.out.mirrors, rm)
	}
	r.checkCounts()
}

func (r *resolver) mirrorMembers(path string, m Mirror) (members []*member) {
	if len(m.Zones) == 0 {
		r.fail(path+".zones", "mirror %q taps no zone; there are: %s", m.Name, r.zoneNames())
	}
	for i, name := range m.Zones {
		at := fmt.Sprintf("%s.zones[%d]", path, i)
		z := r.zone(name)
		switch {
		case z == nil:
			r.fail(at, "no zone %q; there are: %s", name, r.zoneNames())
		case z.Role == RoleDMZ:
			r.fail(at, "zone %q has the role dmz: a mirror of it would copy the copies", name)
		case slices.Contains(m.Zones[:i], name):
			r.fail(at, "zone %q is there twice", name)
		default:
			for _, member := range r.out.members {
				if member.zone == name {
					members = append(members, member)
				}
			}
		}
	}
	return members
}

// checkCounts holds the configuration against the sizes of the maps.
func (r *resolver) checkCounts() {
	targets, vias := 0, 0
	copies := map[*member]int{}
	for i, m := range r.out.mirrors {
		path := fmt.Sprintf("mirrors[%d].targets", i)
		targets += len(m.Targets)
		if targets > limitTargets && targets-len(m.Targets) <= limitTargets {
			r.fail(path, "with mirror %q there are %d targets, more than the %d that a gateway can have", m.Name, targets, limitTargets)
		}
		for _, t := range m.Targets {
			if t.Via.IsValid() {
				vias++
			}
		}
		for _, member := range m.members {
			before := copies[member]
			copies[member] += len(m.Targets)
			if before <= limitCopies && copies[member] > limitCopies {
				r.fail(path, "with mirror %q every packet of %q is copied %d times, more than the %d that are possible",
					m.Name, member.name, copies[member], limitCopies)
			}
		}
	}
	addrs := 0
	for _, m := range r.out.members {
		if m.role == RoleDMZ {
			addrs += len(m.addrs)
		}
	}
	if addrs+vias > limitNexthops {
		r.fail("zones", "the dmz interfaces have %d addresses: with %d targets that is more than %d", addrs, vias, limitNexthops)
	}
}
