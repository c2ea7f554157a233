package loader

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// markedRules finds routing rules that ask for what a lookup of the fast path does
// not know: the mark that the host's firewall has given the packet, the VRF, the
// tunnel it came by.
func markedRules() (string, error) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		messages, err := wholeDump(func() ([][]byte, error) {
			req := nl.NewNetlinkRequest(unix.RTM_GETRULE, unix.NLM_F_DUMP)
			req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: family}})
			return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWRULE)
		})
		if missingInKernel(err) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("list the rules of routing: %w", err)
		}
		for _, m := range messages {
			if why := ruleAsks(m); why != "" {
				return why, nil
			}
		}
	}
	return "", nil
}

// ruleAsks says what a rule asks for that stands in no packet, or "".
func ruleAsks(message []byte) string {
	if len(message) < unix.SizeofRtMsg { // struct fib_rule_hdr is as long
		return ""
	}
	command := "ip rule"
	if message[0] == unix.AF_INET6 {
		command = "ip -6 rule"
	}
	attrs := attributes(message[unix.SizeofRtMsg:])
	number := func(kind uint16) uint32 {
		if v := attrs[kind]; len(v) >= 4 {
			return binary.NativeEndian.Uint32(v)
		}
		return 0
	}
	var asks string
	switch {
	case number(nl.FRA_FWMARK) != 0 || number(nl.FRA_FWMASK) != 0:
		asks = fmt.Sprintf("the mark %#x", number(nl.FRA_FWMARK))
	case len(attrs[unix.FRA_L3MDEV]) > 0 && attrs[unix.FRA_L3MDEV][0] != 0:
		asks = "the VRF"
	case len(attrs[nl.FRA_TUN_ID]) > 0:
		asks = "the tunnel"
	default:
		return ""
	}
	return fmt.Sprintf("%q has a rule (%d) that asks for %s", command, number(nl.FRA_PRIORITY), asks)
}

// Of linux/netfilter/nf_tables.h.
const (
	nftGetChain       = 4
	nftChainTable     = 1
	nftChainName      = 3
	nftChainHook      = 4
	nftHookNumber     = 1
	nftHookDevice     = 3
	nftHookDevices    = 4
	nftDevicePrefix   = 2
	nftFamilyInet     = 1
	nftFamilyNetdev   = 5
	nftIngressNetdev  = 0
	nftIngressForInet = 5
)

// nftIngress finds nft chains that hook where packets come in by these interfaces,
// behind our programs: the fast path passes by them.
func (t *topology) nftIngress(on []ingress) (string, error) {
	messages, err := wholeDump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|nftGetChain, unix.NLM_F_DUMP)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
		return req.Execute(unix.NETLINK_NETFILTER, 0)
	})
	if missingInKernel(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("list nft chains: %w", err)
	}
	var names []string
	for _, i := range on {
		if l := t.byIndex[int(i)]; l != nil {
			names = append(names, l.Attrs().Name)
		}
	}
	for _, m := range messages {
		if why := ingressChain(m, names); why != "" {
			return why, nil
		}
	}
	return "", nil
}

// ingressChain tells of a chain at the ingress of one of these interfaces.
func ingressChain(message []byte, names []string) string {
	const head = 4 // struct nfgenmsg
	if len(message) < head {
		return ""
	}
	family, attrs := message[0], attributes(message[head:])
	hook := attributes(attrs[nftChainHook])
	number := number32(hook[nftHookNumber])
	if attrs[nftChainHook] == nil || !(family == nftFamilyNetdev && number == nftIngressNetdev || family == nftFamilyInet && number == nftIngressForInet) {
		return ""
	}
	for _, name := range names {
		if hooksDevice(hook, name) {
			return fmt.Sprintf("nft chain %s of table %s filters at the ingress of %q",
				unix.ByteSliceToString(attrs[nftChainName]), unix.ByteSliceToString(attrs[nftChainTable]), name)
		}
	}
	return ""
}

func hooksDevice(hook map[uint16][]byte, name string) bool {
	if unix.ByteSliceToString(hook[nftHookDevice]) == name {
		return true
	}
	list, err := nl.ParseRouteAttr(hook[nftHookDevices])
	if err != nil {
		return false
	}
	for _, a := range list {
		device := unix.ByteSliceToString(a.Value)
		if device == name || attrType(a) == nftDevicePrefix && strings.HasPrefix(name, device) {
			return true
		}
	}
	return false
}
