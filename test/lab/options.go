package lab

import (
	"net/netip"
	"regexp"
)

// Option changes what New builds.
type Option func(*options)

type options struct {
	prefix           string
	servers, outside int
	second           bool
	noSensor, silent bool
	routed           bool
	mtu              int
}

var prefixForm = regexp.MustCompile(`^[a-z][a-z0-9]*$`)

func defaults() options { return options{prefix: "tg", servers: 1, outside: 1} }

// Prefix is what the names of namespaces begin with: "tg" gives tg-PID-N-gw,
// -srv1, -out1, -sensor, -mgmt, -second, and -sw-... for switches.
func Prefix(p string) Option { return func(o *options) { o.prefix = p } }

// Servers sets the number of servers, one by default. With more than one
// they hang on a switch (a bridge), which needs the kernel's bridge module.
func Servers(n int) Option { return func(o *options) { o.servers = n } }

// Outside sets the number of hosts outside, one by default; see Servers.
func Outside(n int) Option { return func(o *options) { o.outside = n } }

// SecondInternal adds eth5 to the gateway with 192.168.6.0/24 and a host in it.
func SecondInternal() Option { return func(o *options) { o.second = true } }

// NoSensor leaves out the dmz network: no eth2, no sensor.
func NoSensor() Option { return func(o *options) { o.noSensor = true } }

// SilentSensor gives the sensor a link that is up and no address, so that
// nobody answers for 192.168.4.2.
func SilentSensor() Option { return func(o *options) { o.silent = true } }

// RoutedOutside gives the hosts outside a route to the inner networks, for
// tests without address translation. By default IPv4 gets back only to the
// gateway's own address, and IPv6, which is not translated, gets back.
func RoutedOutside() Option { return func(o *options) { o.routed = true } }

// MTU sets the MTU of every interface, in bytes; 1500 by default.
func MTU(bytes int) Option { return func(o *options) { o.mtu = bytes } }

// network is one of the gateway's networks. The gateway has .1 and ::1.
type network struct {
	name, ifname string
	// index is the gateway's ifindex. It is chosen because the kernel takes up
	// to a second to announce the carrier of a veth whose two ends have the
	// same one, and so that tests notice a number of the wrong namespace.
	index   int
	prefix4 netip.Prefix
	prefix6 netip.Prefix
	hosts   []string // what their namespaces are called
	first   int      // last part of the first host's addresses
	route4  bool     // hosts have the gateway as default route
	silent  bool     // hosts have no address
}

var networkExternal = network{
	name: "external", ifname: "eth0", index: 10, first: 8,
	prefix4: netip.MustParsePrefix("203.0.113.0/24"),
	prefix6: netip.MustParsePrefix("2001:db8:113::/64"),
}

func (o options) networks() []network {
	inner := func(name, ifname string, index int, third string, hosts ...string) network {
		return network{
			name: name, ifname: ifname, index: index, first: 2, route4: true, hosts: hosts,
			prefix4: netip.MustParsePrefix("192.168." + third + ".0/24"),
			prefix6: netip.MustParsePrefix("2001:db8:" + third + "::/64"),
		}
	}
	external := networkExternal
	external.hosts = names("out", o.outside)
	all := []network{external}
	if !o.noSensor {
		dmz := inner("dmz", "eth2", 12, "4", "sensor")
		dmz.silent = o.silent
		all = append(all, dmz)
	}
	all = append(all, inner("internal", "eth3", 13, "3", names("srv", o.servers)...), inner("mgmt", "eth4", 14, "5", "mgmt"))
	if o.second {
		all = append(all, inner("second", "eth5", 15, "6", "second"))
	}
	return all
}
