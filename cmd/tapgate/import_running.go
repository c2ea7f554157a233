package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tapgate/loader"
)

// hostLink is an interface of the gateway.
type hostLink struct {
	name   string
	up     bool
	addrs  []netip.Prefix // ours, with the length of the network
	routes []netip.Prefix // networks behind routers on it
	def    bool           // the default route leaves by it
}

// readLinks reads the interfaces of the network namespace of the calling thread.
func readLinks() ([]hostLink, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var links []hostLink
	for _, i := range list {
		if i.Flags&net.FlagLoopback != 0 {
			continue
		}
		l := hostLink{name: i.Name, up: i.Flags&net.FlagUp != 0}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("addresses of %s: %w", i.Name, err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
				l.addrs = append(l.addrs, p)
			}
		}
		links = append(links, l)
	}
	readRoutes(links)
	return links, nil
}

// readRoutes adds IPv4 routes. Without them networks behind routers stay unknown.
func readRoutes(links []hostLink) {
	text, _ := os.ReadFile("/proc/thread-self/net/route")
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		dst, err1 := strconv.ParseUint(f[1], 16, 32)
		gw, err2 := strconv.ParseUint(f[2], 16, 32)
		mask, err3 := strconv.ParseUint(f[7], 16, 32)
		at := slices.IndexFunc(links, func(l hostLink) bool { return l.name == f[0] })
		if err := errors.Join(err1, err2, err3); err != nil || at < 0 || gw == 0 && mask != 0 {
			continue
		}
		if mask == 0 {
			links[at].def = true
			continue
		}
		b := [4]byte{byte(dst), byte(dst >> 8), byte(dst >> 16), byte(dst >> 24)}
		ones, _ := net.IPv4Mask(byte(mask), byte(mask>>8), byte(mask>>16), byte(mask>>24)).Size()
		links[at].routes = append(links[at].routes, netip.PrefixFrom(netip.AddrFrom4(b), ones))
	}
}

// tool runs a program of the host, and says whether it is there and what it printed.
func tool(name string, args ...string) (out string, there bool, err error) {
	path, err := exec.LookPath(name)
	if err != nil { // root's tools are not in everybody's PATH
		path = filepath.Join("/usr/sbin", name)
		if unix.Access(path, unix.X_OK) != nil {
			return "", false, nil
		}
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		said, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		return stdout.String(), true, fmt.Errorf("%s %s: %s", name, strings.Join(args, " "), cmp.Or(said, err.Error()))
	}
	return stdout.String(), true, nil
}

// readHost reads what is in force here: firewalld if it runs, else iptables and nft.
func (im *imported) readHost(ownNamespace bool) error {
	if ownNamespace {
		if _, there, err := tool("firewall-cmd", "--state"); there && err == nil {
			return im.readFirewalld()
		}
	}
	seen := false
	for _, name := range []string{"iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"} {
		out, there, err := tool(name)
		if err != nil {
			im.note("cannot see the rules of %s: %v", name, err)
		}
		if !there || err != nil {
			continue
		}
		seen = true
		if strings.Contains(out, "\n-A ") {
			im.iptablesRead = true
			if err := im.parseIptables(name, out); err != nil {
				return err
			}
		}
	}
	out, there, err := tool("nft", "-j", "list", "ruleset")
	switch {
	case err != nil:
		im.note("cannot see the rules of nft: %v", err)
	case there:
		seen, im.iptablesRead = true, true
		if err := im.parseNft("nft", out); err != nil {
			return err
		}
	}
	if !seen {
		return errors.New("cannot see the rules of this host: firewalld does not run here, and neither iptables-save nor nft can be used (as root); " +
			"or give a file: --firewalld DIR, --iptables-save FILE, --nft FILE")
	}
	return nil
}

// readFirewalld asks a running firewalld, which knows what was changed since it read
// its files, and interfaces that NetworkManager has put into zones.
func (im *imported) readFirewalld() error {
	fw := &firewalld{services: []string{"/etc/firewalld/services", filepath.Join(firewalldDefaults, "services")}}
	ask := func(args ...string) (string, error) {
		out, _, err := tool("firewall-cmd", args...)
		return out, err
	}
	zone, err := ask("--get-default-zone")
	if err != nil {
		return err
	}
	fw.defaultZone = strings.TrimSpace(zone)
	zones, err := ask("--list-all-zones")
	if err != nil {
		return err
	}
	fw.zones = fwZonesOf(zones, false)
	// Before 0.9 there are no policies.
	if policies, err := ask("--list-all-policies"); err == nil {
		fw.zones = append(fw.zones, fwZonesOf(policies, true)...)
	}
	rules, err := ask("--direct", "--get-all-rules")
	if err != nil {
		im.note("firewalld's direct rules are not taken over: %v", err)
	}
	for line := range strings.Lines(rules) {
		w := strings.SplitN(strings.TrimSpace(line), " ", 5)
		if len(w) == 5 {
			fw.direct = append(fw.direct, fwDirect{w[0], w[1], w[2], w[3], w[4]})
		}
	}
	passed, _ := ask("--direct", "--get-all-passthroughs")
	for line := range strings.Lines(passed) {
		ipv, args, _ := strings.Cut(strings.TrimSpace(line), " ")
		fw.passthrough(ipv, args)
	}
	return im.addFirewalld("the running firewalld", fw)
}

// fwZonesOf reads what firewall-cmd lists of all zones or policies.
func fwZonesOf(text string, policy bool) (zones []fwZone) {
	var z *fwZone
	key := ""
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		switch {
		case trimmed == "":
			continue
		case line[0] != ' ' && line[0] != '\t':
			name, _, _ := strings.Cut(trimmed, " ")
			zones = append(zones, fwZone{name: name, policy: policy})
			z, key = &zones[len(zones)-1], ""
			continue
		case z == nil:
			continue
		}
		value := trimmed
		if line[0] != '\t' { // what is one of several stands on lines of its own, behind a tab
			key, value, _ = strings.Cut(trimmed, ":")
			value = strings.TrimSpace(value)
		}
		if value == "" {
			continue
		}
		words := strings.Fields(value)
		switch key {
		case "target":
			z.target = strings.Trim(value, "%") // %%REJECT%%
		case "priority":
			z.priority, _ = strconv.Atoi(value)
		case "ingress-zones":
			z.ingress = words
		case "egress-zones":
			z.egress = words
		case "interfaces":
			z.interfaces = words
		case "sources":
			z.sources = words
		case "services":
			z.services = words
		case "ports":
			z.ports = words
		case "masquerade":
			z.masquerade = value == "yes"
		case "forward-ports":
			z.forwards = append(z.forwards, fwForwardText(value))
		case "rich rules":
			z.rich = append(z.rich, fwRichText(value))
		}
	}
	return zones
}

// fwRichText reads a rich rule as firewall-cmd writes it: an element is a word, its
// attributes are the words with "=" behind it.
func fwRichText(s string) fwRich {
	rich, element := fwRich{}, ""
	words, _ := shellWords(s)
	for _, w := range words {
		key, value, isAttr := strings.Cut(w, "=")
		if !isAttr {
			element = w
			rich[element] = map[string]string{}
		} else if rich[element] != nil {
			rich[element][key] = value
		}
	}
	return rich
}

// inNetns reads in the network namespace of the gateway.
func (g *globals) inNetns(f func() error) error {
	return loader.InNamespace(g.netns, f)
}
