package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
)

// reassemblyMTU is as large as an interface's may be: fragments are cut again at
// the size they had, never at this one.
const reassemblyMTU = 65535

// makeReassemblyPair makes the veth pair in the calling thread's network namespace,
// which is empty but for it, and has the kernel forward everything that comes in by
// the far end to where it came from.
func makeReassemblyPair() (near, far netlink.Link, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = reassemblyFar, reassemblyMTU
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: reassemblyNear, PeerMTU: reassemblyMTU}); err != nil {
		return nil, nil, fmt.Errorf("make a veth pair: %w", err)
	}
	if near, err = netlink.LinkByName(reassemblyNear); err == nil {
		far, err = netlink.LinkByName(reassemblyFar)
	}
	if err == nil {
		err = netlink.LinkSetAlias(near, reassemblyAlias)
	}
	// No neighbours on either side: frames go to where they are sent.
	for _, l := range []netlink.Link{near, far} {
		if err == nil {
			err = netlink.LinkSetARPOff(l)
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("make a veth pair: %w", err)
	}
	if err := setAll(map[string]string{
		"ipv4/ip_forward":                                "1",
		"ipv4/conf/all/rp_filter":                        "0",
		"ipv4/conf/" + reassemblyFar + "/rp_filter":      "0",
		"ipv4/conf/all/send_redirects":                   "0", // it sends back all it gets
		"ipv4/conf/" + reassemblyFar + "/send_redirects": "0",
		"ipv6/conf/all/forwarding":                       "1",
		"ipv6/conf/" + reassemblyFar + "/addr_gen_mode":  "1", // no address: nothing to redirect with, either
		"ipv6/conf/" + reassemblyFar + "/accept_ra":      "0",
	}); err != nil {
		return nil, nil, err
	}
	if err := netlink.LinkSetUp(far); err != nil {
		return nil, nil, fmt.Errorf("switch on %s: %w", reassemblyFar, err)
	}
	for _, f := range reassemblyFamilies {
		if !pathExists(f.proc) {
			continue
		}
		_, all, err := net.ParseCIDR(f.any)
		if err == nil {
			err = netlink.RouteAdd(&netlink.Route{LinkIndex: far.Attrs().Index, Dst: all, Scope: netlink.SCOPE_LINK})
		}
		if err != nil {
			return nil, nil, fmt.Errorf("route %s to %s: %w", f.any, reassemblyFar, err)
		}
	}
	return near, far, nil
}

// boundReassembly sets how much memory waiting fragments may take, and how long:
// less long than by default (30 s), since what is out of order is so by milliseconds.
func boundReassembly() error {
	const bytes, seconds = "33554432", "10"
	return setAll(map[string]string{
		"ipv4/ipfrag_high_thresh": bytes,
		"ipv4/ipfrag_time":        seconds,
		// Datagrams of one source may be mixed as they like.
		"ipv4/ipfrag_max_dist":                     "0",
		"netfilter/nf_conntrack_frag6_high_thresh": bytes,
		"netfilter/nf_conntrack_frag6_timeout":     seconds,
	})
}

// setAll sets settings below /proc/sys/net of the thread's namespace; those that
// the kernel does not have are left out.
func setAll(settings map[string]string) error {
	var errs []error
	for name, value := range settings {
		err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
