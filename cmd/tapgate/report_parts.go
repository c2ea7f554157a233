package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"tapgate/loader"
)

// reportPart is one file of a report. What it gathers is told also beside an error.
type reportPart struct {
	file   string
	gather func() (string, error)
}

// reportSysctls are settings that decide about forwarding and translation; a * stands
// for each interface.
var reportSysctls = []string{
	"net/ipv4/ip_forward", "net/ipv4/conf/*/forwarding", "net/ipv4/conf/*/rp_filter", "net/ipv4/conf/*/proxy_arp", "net/ipv4/conf/*/arp_ignore",
	"net/ipv4/conf/*/accept_local", "net/ipv4/conf/*/send_redirects", "net/ipv4/ip_local_port_range", "net/ipv4/ip_local_reserved_ports",
	"net/ipv6/conf/*/forwarding", "net/ipv6/conf/*/accept_ra", "net/ipv6/conf/*/disable_ipv6",
	"net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_tcp_be_liberal",
	"net/core/bpf_jit_enable", "net/core/bpf_jit_harden", "net/core/default_qdisc",
	"kernel/unprivileged_bpf_disabled", "kernel/bpf_stats_enabled", "kernel/lockdown",
}

func (e *env) reportParts(g *globals, f *reportFlags) []reportPart {
	parts := []reportPart{
		{"version.txt", e.own(g, "version")},
		{"system.txt", systemText},
		{"check.txt", func() (string, error) { return e.reportCheck(g) }},
		{"status.txt", e.own(g, "status", "-v")},
		{"status.json", e.own(g, "status", "--json")},
		{"config.yaml", func() (string, error) { return e.reportConfig(g, f.anonymize) }},
		{"rules.txt", func() (string, error) { return e.reportRules(g) }},
		{"flows.json", func() (string, error) { return e.reportFlows(g) }},
		{"bpf.json", func() (string, error) { return reportInventory(g) }},
		{"sysctls.txt", func() (string, error) { return reportSettings(g) }},
		{"links.txt", hostTool(g, "ip", "-details", "-statistics", "link")},
		{"addresses.txt", hostTool(g, "ip", "address")},
		{"routes.txt", hostTool(g, "ip", "-4", "route", "show", "table", "all")},
		{"routes6.txt", hostTool(g, "ip", "-6", "route", "show", "table", "all")},
		{"ip-rules.txt", hostTool(g, "ip", "rule")},
		{"ip-rules6.txt", hostTool(g, "ip", "-6", "rule")},
		{"neighbours.txt", hostTool(g, "ip", "neighbour")},
		{"qdiscs.txt", hostTool(g, "tc", "-statistics", "qdisc")},
		{"firewall.txt", func() (string, error) { return firewallNames(g) }},
	}
	if !f.anonymize {
		parts = append(parts, reportPart{"journal.txt", hostTool(&globals{}, "journalctl", "--quiet", "--no-pager", "--no-hostname", "--output=short-iso", "--lines=1000",
			"SYSLOG_IDENTIFIER=tapgate", "+", "_SYSTEMD_UNIT=tapgate.service", "+", "_SYSTEMD_UNIT=tapgate-agent.service")})
	}
	if f.dmesg {
		parts = append(parts, reportPart{"dmesg.txt", kernelMessages})
	}
	return parts
}

// own runs a command of ours.
func (e *env) own(g *globals, args ...string) func() (string, error) {
	args = append(args, "--bpffs", g.bpffs, "--lock-timeout", g.lockTimeout.String())
	if g.given("netns") {
		args = append(args, "--netns", g.netns)
	}
	return func() (string, error) {
		var out, talk bytes.Buffer
		inner := *e
		inner.stdin, inner.stdout, inner.stderr = strings.NewReader(""), &out, &talk
		err := run(&inner, args)
		return talk.String() + out.String(), err
	}
}

// hostTool runs one of the system's in the gateway's network namespace.
func hostTool(g *globals, name string, args ...string) func() (string, error) {
	return func() (out string, err error) {
		err = loader.InNamespace(g.netns, func() error {
			text, there, err := tool(name, args...)
			out = text
			if err == nil && !there {
				err = fmt.Errorf("%s is not installed", name)
			}
			return err
		})
		return out, err
	}
}

func systemText() (string, error) {
	var b strings.Builder
	var errs []error
	for _, c := range []struct{ file, lines string }{
		{"/proc/version", "."}, {"/proc/cmdline", "."}, {"/proc/uptime", "."}, {"/proc/loadavg", "."}, {"/etc/os-release", "^(PRETTY_NAME|ID|VERSION_ID)="},
		{"/proc/meminfo", "^(MemTotal|MemAvailable)"}, {"/proc/cpuinfo", "^(processor|model name)"},
		{"/sys/kernel/security/lockdown", "."}, {"/sys/fs/cgroup/cgroup.controllers", "."},
	} {
		text, err := os.ReadFile(c.file)
		if err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
			continue
		}
		wanted := regexp.MustCompile(c.lines)
		for line := range strings.Lines(string(text)) {
			if wanted.MatchString(line) {
				b.WriteString(c.file + ": " + strings.TrimSpace(line) + "\n")
			}
		}
	}
	return b.String(), errors.Join(errs...)
}

// applied parses the configuration in force.
func (e *env) applied(g *globals) (doc *document, err error) {
	err = e.read(g, func(gw gateway) error {
		doc, err = parseConfig("applied configuration", []byte(gw.Source()))
		return err
	})
	return doc, err
}

// reportCheck is what check says of the configuration in force, or of none. Commands
// against the host's rules quote these whole, and are left out.
func (e *env) reportCheck(g *globals) (string, error) {
	opt, err := g.options(false)
	if err != nil {
		return "", err
	}
	var cfg *loader.Config
	if doc, err := e.applied(g); err == nil {
		cfg = &doc.Config
	}
	report, err := e.loader().Check(opt, cfg)
	if report == nil {
		return "", err
	}
	if report.Gateway != nil {
		for i := range report.Gateway.HostRules {
			report.Gateway.HostRules[i].Commands = nil
		}
	}
	return checkText(report, cfg != nil && err == nil), err
}

func (e *env) reportConfig(g *globals, anonymize bool) (text string, err error) {
	if anonymize { // comments may hold anything
		doc, err := e.applied(g)
		if err != nil {
			return "", err
		}
		return formatConfig(doc.Config), nil
	}
	err = e.read(g, func(gw gateway) error {
		text = gw.Source()
		return nil
	})
	return text, err
}

// reportRules are the rules with what they did.
func (e *env) reportRules(g *globals) (string, error) {
	var all string
	var errs []error
	for _, what := range []string{"mirror", "forward", "masquerade", "policy"} {
		text, err := e.own(g, what, "list")()
		all += text
		errs = append(errs, err)
	}
	if errs[0] != nil && errors.Is(errs[0], loader.ErrNotAttached) {
		return all, errs[0] // the same of all
	}
	return all, errors.Join(errs...)
}

// flowNumbers are flows by what tells one kind from another.
type flowNumbers struct {
	Flows      int            `json:"flows"`
	Fast       int            `json:"fast"`
	Translated int            `json:"translated"`
	Copied     int            `json:"copied"` // with packets that a mirror took
	Inside     int            `json:"from_inside"`
	ByProto    map[string]int `json:"by_protocol"`
	ByState    map[string]int `json:"by_state"`
	ByOrigin   map[string]int `json:"by_origin"`
	Packets    uint64         `json:"packets"`
	Bytes      uint64         `json:"bytes"`
}

func (e *env) reportFlows(g *globals) (string, error) {
	n := flowNumbers{ByProto: map[string]int{}, ByState: map[string]int{}, ByOrigin: map[string]int{}}
	err := e.read(g, func(gw gateway) error {
		flows, err := gw.Flows(loader.FlowFilter{})
		for _, f := range flows {
			n.add(f)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	text, err := json.MarshalIndent(n, "", "  ")
	return string(text) + "\n", err
}

func (n *flowNumbers) add(f loader.Flow) {
	count := func(to *int, yes bool) {
		if yes {
			*to++
		}
	}
	n.Flows++
	count(&n.Fast, f.Fast)
	count(&n.Translated, f.Outside != "" && f.Outside != f.Inside)
	count(&n.Copied, f.Copied > 0)
	count(&n.Inside, !f.FromOutside)
	n.ByProto[f.Proto]++
	n.ByState[f.State]++
	n.ByOrigin[f.Origin]++
	n.Packets += f.Packets
	n.Bytes += f.Bytes
}

func reportInventory(g *globals) (string, error) {
	opt, err := g.options(false)
	if err != nil {
		return "", err
	}
	inv, err := loader.ReadInventory(opt)
	if inv == nil {
		return "", err
	}
	text, jerr := json.MarshalIndent(inv, "", "  ")
	return string(text) + "\n", errors.Join(err, jerr)
}

func reportSettings(g *globals) (string, error) {
	var b strings.Builder
	err := loader.InNamespace(g.netns, func() error {
		for _, pattern := range reportSysctls {
			files, _ := filepath.Glob("/proc/sys/" + pattern)
			if len(files) == 0 {
				fmt.Fprintf(&b, "%s: there is none\n", pattern)
			}
			for _, file := range files {
				value, err := os.ReadFile(file)
				if err != nil {
					value = []byte(err.Error())
				}
				fmt.Fprintf(&b, "%s = %s\n", strings.TrimPrefix(file, "/proc/sys/"), strings.TrimSpace(string(value)))
			}
		}
		return nil
	})
	return b.String(), err
}

// firewallNames are the tables and chains of nft, and the chains with their policies of
// the older iptables. Rules and comments are not read.
func firewallNames(g *globals) (string, error) {
	var b strings.Builder
	text, err := hostTool(g, "nft", "-j", "list", "chains")()
	var doc struct {
		Nftables []struct {
			Table *struct{ Family, Name string }
			Chain *struct {
				Family, Table, Name, Type, Hook, Policy string
				Prio                                    any
			}
		}
	}
	if err == nil {
		err = json.Unmarshal([]byte(text), &doc)
	}
	errs := []error{err}
	for _, o := range doc.Nftables {
		if c := o.Chain; c != nil {
			line := fmt.Sprintf("nft %s %s %s", c.Family, c.Table, c.Name)
			if c.Hook != "" {
				line += fmt.Sprintf(": type %s hook %s priority %v policy %s", c.Type, c.Hook, c.Prio, c.Policy)
			}
			b.WriteString(line + "\n")
		}
	}
	for _, c := range []struct{ command, tables string }{{"iptables-legacy", "ip_tables_names"}, {"ip6tables-legacy", "ip6_tables_names"}} {
		tables, _ := os.ReadFile("/proc/net/" + c.tables)
		for _, table := range strings.Fields(string(tables)) {
			text, err := hostTool(g, c.command, "-t", table, "-S")()
			errs = append(errs, err)
			for line := range strings.Lines(text) {
				if strings.HasPrefix(line, "-P ") || strings.HasPrefix(line, "-N ") {
					b.WriteString(c.command + " " + table + " " + line)
				}
			}
		}
	}
	return b.String(), errors.Join(errs...)
}

// kernelMessages are those that concern what tapgate does.
func kernelMessages() (string, error) {
	text, err := hostTool(&globals{}, "dmesg", "--time-format=iso")()
	wanted := regexp.MustCompile(`(?i)bpf|tapgate|conntrack|martian|clsact|netdev|renamed|link (up|down|becomes)|out of memory|allocation fail`)
	lines := slices.DeleteFunc(strings.SplitAfter(text, "\n"), func(l string) bool { return !wanted.MatchString(l) })
	return strings.Join(lines[max(0, len(lines)-1000):], ""), err
}
