package loader

import (
	"errors"
	"fmt"
	"net"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Report is what a kernel, its interfaces and a configuration allow.
type Report struct {
	Kernel     string            `json:"kernel"` // release, as in "uname -r"
	Features   []Feature         `json:"features"`
	Interfaces []InterfaceReport `json:"interfaces"`
	Gateway    *GatewayReport    `json:"gateway,omitempty"` // nil: it would only copy
	Problems   []string          `json:"problems"`          // what stands against the configuration
	Warnings   []string          `json:"warnings"`
}

// InterfaceReport is one interface of the namespace.
type InterfaceReport struct {
	Name      string   `json:"name"`
	Ifindex   int      `json:"ifindex"`
	Type      string   `json:"type"` // as in "ip -d link": veth, vlan; "device" for hardware
	Up        bool     `json:"up"`   // administratively
	Carrier   bool     `json:"carrier"`
	MTU       int      `json:"mtu"`           // bytes from the network layer up
	MAC       string   `json:"mac,omitempty"` // none on links without Ethernet
	Addresses []string `json:"addresses"`     // with the length of their network
	Zone      string   `json:"zone,omitempty"`
	Tapable   bool     `json:"tappable"`      // copies can start or leave here
	Why       string   `json:"why,omitempty"` // why not
}

// Check tells what this kernel, the interfaces of opt.Netns and cfg, which may
// be nil, allow. It changes nothing. The report is there whenever it could be
// made, also beside an error: problems of the configuration come back as joined
// *ConfigError as well, those of the kernel as another error.
func Check(opt Options, cfg *Config) (*Report, error) {
	ns, err := openNamespace(opt.Netns)
	if err != nil {
		return nil, err
	}
	defer ns.close()

	r := &Report{Features: ProbeFeatures(), Interfaces: []InterfaceReport{}, Problems: []string{}, Warnings: []string{}}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("read the kernel's release: %w", err)
	}
	r.Kernel = unix.ByteSliceToString(uts.Release[:])

	problem := missing(r.Features)
	err = ns.do(func() error {
		topo, err := readTopology()
		if err != nil {
			return err
		}
		r.interfaces(topo, cfg)
		if cfg != nil {
			problem = errors.Join(problem, r.checkConfig(opt, *cfg, ns))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.Problems = append(r.Problems, messages(problem)...)
	return r, problem
}

func (r *Report) checkConfig(opt Options, cfg Config, ns *namespace) error {
	res, err := resolve(cfg, opt.Force)
	if err == nil {
		r.Warnings = append(r.Warnings, res.warnings...)
		if res.gateway != nil {
			res.gateway.settle(res.ingresses(), nil)
		}
		r.Gateway = res.gateway.report(r.Features)
		err = r.heldAgainstHost(opt, res)
	}
	cut := lockOut(cfg, res, ns)
	if cut != nil && opt.Force {
		r.Warnings = append(r.Warnings, cut.Error())
		cut = nil
	}
	return errors.Join(err, cut)
}

// messages takes joined errors apart.
func messages(err error) (list []string) {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			list = append(list, messages(e)...)
		}
		return list
	}
	return []string{err.Error()}
}

// interfaces lists those of the namespace. Warnings are for those in a zone, and
// for all without a configuration.
func (r *Report) interfaces(topo *topology, cfg *Config) {
	zones := map[int]string{}
	if cfg != nil {
		for _, z := range cfg.Zones {
			for _, name := range z.Interfaces {
				if l := topo.find(name); l != nil {
					zones[l.Attrs().Index] = z.Name
				}
			}
		}
	}
	tool, err := ethtool.NewEthtool()
	if err == nil {
		defer tool.Close()
	} else {
		tool = nil
	}
	for _, l := range topo.links {
		a := l.Attrs()
		i := InterfaceReport{
			Name: a.Name, Ifindex: a.Index, Type: l.Type(), Up: a.Flags&net.FlagUp != 0, Carrier: hasCarrier(l),
			MTU: a.MTU, MAC: a.HardwareAddr.String(), Addresses: []string{}, Zone: zones[a.Index], Why: topo.untapable(l),
		}
		i.Tapable = i.Why == ""
		for _, addr := range topo.addrs[a.Index] {
			i.Addresses = append(i.Addresses, addr.prefix.String())
		}
		r.Interfaces = append(r.Interfaces, i)

		if (cfg == nil || i.Zone != "") && i.Tapable && tool != nil {
			r.warnOffload(l, tool)
		}
	}
}

// warnOffload: what the hardware forwards never comes to TC.
func (r *Report) warnOffload(l netlink.Link, tool *ethtool.Ethtool) {
	name := l.Attrs().Name
	feature, err := tool.Features(name)
	if err != nil {
		return // interfaces without ethtool have no such hardware
	}
	if feature["hw-tc-offload"] {
		r.Warnings = append(r.Warnings, fmt.Sprintf(
			"interface %q has TC offload switched on: what its hardware forwards by itself is not copied; \"ethtool -K %s hw-tc-offload off\"", name, name))
	}
}
