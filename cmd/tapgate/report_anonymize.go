package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// anonymizer replaces addresses, each by the same one wherever it stands. What belongs
// to a machine of everybody's (loopback, multicast, any) stays. Networks keep their
// length, and no more: that two addresses are of one network is not to be seen.
type anonymizer struct {
	addrs map[netip.Addr]netip.Addr
	macs  map[string]string
}

func newAnonymizer() *anonymizer {
	return &anonymizer{addrs: map[netip.Addr]netip.Addr{}, macs: map[string]string{}}
}

// bridgeText is a bridge's number: a priority, and a MAC address without leading zeros.
const bridgeText = `\b[0-9a-f]{4}\.[0-9a-f]{1,2}(?::[0-9a-f]{1,2}){5}\b`

const ipv4Text = `\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b`

var (
	// A MAC address, or whatever may be an IPv6 address, of which most turns out to be none, or an IPv4 address.
	addressText = regexp.MustCompile(bridgeText + `|enx[0-9a-f]{12}\b|\b[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}\b|[0-9A-Fa-f]*:[0-9A-Fa-f:]+(?:\.[0-9]{1,3}){0,3}|` + ipv4Text)
	bridgeOnly  = regexp.MustCompile(`^` + bridgeText + `$`)
	ipv4Only    = regexp.MustCompile(ipv4Text)
	macOnly     = regexp.MustCompile(`^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$`)
)

// text replaces the addresses of a text, in one go: what it has put there is not looked at again.
func (a *anonymizer) text(s string) string {
	return addressText.ReplaceAllStringFunc(s, func(found string) string {
		switch {
		case macOnly.MatchString(found):
			return a.mac(found)
		case bridgeOnly.MatchString(found):
			digits := strings.Split(found[5:], ":")
			for i, d := range digits {
				digits[i] = ("0" + d)[len(d)-1:]
			}
			return found[:5] + a.mac(strings.Join(digits, ":"))
		case strings.HasPrefix(found, "enx"): // an interface's other name
			mac := found[3:]
			return "enx" + strings.ReplaceAll(a.mac(strings.Join([]string{mac[:2], mac[2:4], mac[4:6], mac[6:8], mac[8:10], mac[10:]}, ":")), ":", "")
		}
		// "2001:db8::1: no route" and "key:2001:db8::1" take a colon too many.
		for _, cut := range []string{found, strings.TrimSuffix(found, ":"), strings.TrimPrefix(found, ":")} {
			if addr, err := netip.ParseAddr(cut); err == nil {
				return strings.Replace(found, cut, a.addr(addr).String(), 1)
			}
		}
		return ipv4Only.ReplaceAllStringFunc(found, func(part string) string {
			if addr, err := netip.ParseAddr(part); err == nil {
				return a.addr(addr).String()
			}
			return part
		})
	})
}

// addr gives IPv4 out of 198.18.0.0/15 (RFC 2544) and IPv6 out of 2001:db8::/32, of
// link-local addresses out of fe80::/64.
func (a *anonymizer) addr(addr netip.Addr) netip.Addr {
	if addr.Is4In6() {
		v4 := a.addr(addr.Unmap())
		return netip.AddrFrom16(v4.As16())
	}
	if addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return addr
	}
	if addr.Is4() && addr.As4()[0] == 255 { // a netmask
		return addr
	}
	if known, ok := a.addrs[addr]; ok {
		return known
	}
	n := uint32(len(a.addrs) + 1)
	var out netip.Addr
	if addr.Is4() {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], 198<<24|18<<16+n)
		out = netip.AddrFrom4(b)
	} else {
		b := [16]byte{0x20, 0x01, 0x0d, 0xb8}
		if addr.IsLinkLocalUnicast() {
			b = [16]byte{0xfe, 0x80}
		}
		binary.BigEndian.PutUint32(b[12:], n)
		out = netip.AddrFrom16(b)
	}
	a.addrs[addr] = out
	return out
}

func (a *anonymizer) mac(found string) string {
	key := strings.ToLower(strings.ReplaceAll(found, "-", ":"))
	if key == "ff:ff:ff:ff:ff:ff" || key == "00:00:00:00:00:00" {
		return found
	}
	if known, ok := a.macs[key]; ok {
		return known
	}
	n := len(a.macs) + 1
	out := fmt.Sprintf("02:00:00:%02x:%02x:%02x", n>>16&0xff, n>>8&0xff, n&0xff)
	a.macs[key] = out
	return out
}
