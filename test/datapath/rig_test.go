package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"tapgate/loader"
	"tapgate/test/lab"
)

// The gateway's interfaces: those of the lab, and eth6, a second way to the
// sensor's host, for targets that get frames as they are.
const (
	external = 10 // eth0, zone external
	dmz      = 12 // eth2, zone dmz
	internal = 13 // eth3, zone internal
	mgmt     = 14 // eth4, zone mgmt
	second   = 15 // eth5, zone second
	dmz2     = 16 // eth6, zone dmz
)

var ifnames = map[int]string{external: "eth0", dmz: "eth2", internal: "eth3", mgmt: "eth4", second: "eth5", dmz2: "eth6"}

// On the dmz network.
var (
	us        = netip.MustParseAddr("192.168.4.1")
	us6       = netip.MustParseAddr("2001:db8:4::1")
	sensor    = netip.MustParseAddr("192.168.4.2")
	sensor6   = netip.MustParseAddr("2001:db8:4::2")
	other     = netip.MustParseAddr("192.168.4.77")
	other6    = netip.MustParseAddr("2001:db8:4::77")
	sensorMAC = net.HardwareAddr{2, 0, 0, 0x5e, 4, 2}
	otherMAC  = net.HardwareAddr{2, 0, 0, 0x5e, 4, 0x77}
	l2MAC     = net.HardwareAddr{2, 0, 0, 0x5e, 6, 6}
)

// rig is a gateway whose programs can be run on packets.
type rig struct {
	*lab.Lab
	opt      loader.Options
	gw       *loader.Gateway
	dir      string // of the state
	programs map[string]*ebpf.Program
	maps     map[string]*ebpf.Map
	prepared map[preparation]*ebpf.Program
	usMAC    net.HardwareAddr // of eth2

	viaEth2, viaEth6 *tap // what the sensor's host gets
}

var (
	via    = loader.Target{Via: sensor}
	via6   = loader.Target{Via: sensor6}
	l2     = loader.Target{L2: "eth6"}
	l2with = loader.Target{L2: "eth6", MAC: l2MAC}
)

// mirror is a mirror of some zones with its targets.
func mirror(name string, zones []string, targets ...loader.Target) loader.Mirror {
	return loader.Mirror{Name: name, Zones: zones, Targets: targets}
}

var inside = []string{"internal"}

// policy is all zones with some mirrors.
func policy(mirrors ...loader.Mirror) loader.Config {
	return loader.Config{
		Zones: []loader.Zone{
			{Name: "external", Role: loader.RoleExternal, Interfaces: []string{"eth0"}},
			{Name: "internal", Role: loader.RoleInternal, Interfaces: []string{"eth3"}},
			{Name: "second", Role: loader.RoleInternal, Interfaces: []string{"eth5"}},
			{Name: "dmz", Role: loader.RoleDMZ, Interfaces: []string{"eth2", "eth6"}},
			{Name: "mgmt", Role: loader.RoleMgmt, Interfaces: []string{"eth4"}},
		},
		Mirrors: mirrors,
	}
}

func newRig() (*rig, error) {
	// Nobody answers on the dmz network: the tests do.
	l, err := lab.New(lab.Prefix("tgdp"), lab.SilentSensor(), lab.SecondInternal())
	if err != nil {
		return nil, err
	}
	r := &rig{Lab: l, programs: map[string]*ebpf.Program{}, maps: map[string]*ebpf.Map{}, prepared: map[preparation]*ebpf.Program{}}
	if err := r.build(); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *rig) build() error {
	r.usMAC = r.Gateway.Interface("eth2").MAC
	if err := r.hush(); err != nil {
		return err
	}
	if err := r.addEth6(); err != nil {
		return err
	}
	bpffs, err := r.MountBPFFS()
	if err != nil {
		return err
	}
	r.opt = loader.Options{Netns: r.Gateway.Name, BPFFS: bpffs}
	if _, err := loader.Apply(r.opt, policy(mirror("ids", inside, via))); err != nil {
		return err
	}
	if r.gw, err = loader.Open(r.opt, loader.ReadWrite); err != nil {
		return err
	}
	if err := r.openPins(); err != nil {
		return err
	}
	if r.viaEth2, err = newTap(r.Sensor, "eth0"); err == nil {
		r.viaEth6, err = newTap(r.Sensor, "eth1")
	}
	return err
}

// hush takes IPv6 from all interfaces where the kernel would talk into the
// counters; eth2 keeps it, since its addresses matter.
func (r *rig) hush() error {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return nil
	}
	quiet := func(h *lab.Host, interfaces ...string) error {
		for _, name := range interfaces {
			if err := h.Sysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1"); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.Join(
		quiet(r.Gateway, "eth0", "eth3", "eth4", "eth5", "default"),
		quiet(r.Servers[0], "eth0"), quiet(r.Outside[0], "eth0"), quiet(r.Mgmt, "eth0"), quiet(r.Second, "eth0"),
		quiet(r.Sensor, "eth0", "default"),
	)
}

func (r *rig) addEth6() error {
	ns, err := os.Open(r.Sensor.Path())
	if err != nil {
		return err
	}
	defer ns.Close()
	err = r.Gateway.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index, attrs.MTU = "eth6", dmz2, 1500
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth1", PeerNamespace: netlink.NsFd(ns.Fd())})
	})
	return errors.Join(err, r.Sensor.SetUp("eth1", true), r.Gateway.SetUp("eth6", true))
}

// openPins opens the programs and maps where the README says that they are.
func (r *rig) openPins() error {
	s, err := r.gw.Status()
	if err != nil {
		return err
	}
	r.dir = s.State
	for _, name := range []string{"tap_in", "tap_out", "dmz_in", "dmz_out"} {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(r.dir, "programs", "tapgate_"+name), nil)
		if err != nil {
			return fmt.Errorf("open program: %w", err)
		}
		r.programs[name] = p
	}
	for _, name := range []string{"tg_control", "tg_neighs", "tg_seen", "tg_mirror_led", "tg_target_led"} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(r.dir, "maps", name), nil)
		if err != nil {
			return fmt.Errorf("open map: %w", err)
		}
		r.maps[name] = m
	}
	return nil
}

func (r *rig) close() error {
	for _, p := range r.programs {
		p.Close()
	}
	for _, p := range r.prepared {
		p.Close()
	}
	for _, m := range r.maps {
		m.Close()
	}
	var errs []error
	if r.gw != nil {
		errs = append(errs, r.gw.Close())
	}
	return errors.Join(append(errs, r.Lab.Close())...)
}

// apply puts mirrors in force.
func (r *rig) apply(t *testing.T, mirrors ...loader.Mirror) {
	t.Helper()
	if _, err := r.gw.Apply(policy(mirrors...)); err != nil {
		t.Fatal(err)
	}
}

// status reads the counters.
func (r *rig) status(t *testing.T) *loader.Status {
	t.Helper()
	s, err := r.gw.Status()
	if err != nil {
		t.Fatal(err)
	}
	return s
}
