package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

func newImportCommand(e *env, g *globals) *cobra.Command {
	var firewalldDir, iptables, nft string
	cmd := &cobra.Command{
		Use:   "import [--firewalld DIR] [--iptables-save FILE] [--nft FILE]",
		Short: "Write the configuration that does what this host's rules do",
		Long: `Reads what a host has and writes the configuration that does the same: zones,
masquerade, port forwards, policies between zones, and mirrors for what TEE or
dup copies. Without a flag it asks this host: firewalld if it runs, else
iptables and nft. Changes nothing.

What it could not take over, and the commands that take the host's own rules away
once the configuration is in force, stand as comments in front of it; what could
not be taken over is also told on standard error. Addresses and routes of this
host say which interface is whose: run it on the gateway itself, or read it with
care.

Exit code 1 if there is nothing to import, 2 if a file cannot be read.`,
		Example: `  tapgate import >tapgate.yaml
  tapgate import --firewalld /etc/firewalld
  iptables-save | tapgate import --iptables-save -
  nft -j list ruleset | tapgate import --nft -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := g.options(false); err != nil {
				return err
			}
			im := &imported{}
			err := g.inNetns(func() (err error) {
				if im.links, err = readLinks(); err != nil {
					return err
				}
				return e.readSources(im, cmd, firewalldDir, iptables, nft, g.netns == "")
			})
			if err != nil {
				return err
			}
			return e.writeImport(im)
		},
	}
	f := cmd.Flags()
	f.StringVar(&firewalldDir, "firewalld", "", "firewalld's configuration `DIR`, as /etc/firewalld")
	f.StringVar(&iptables, "iptables-save", "", "`FILE` that iptables-save or ip6tables-save wrote; - is standard input")
	f.StringVar(&nft, "nft", "", "`FILE` that \"nft -j list ruleset\" wrote; - is standard input")
	_ = cmd.MarkFlagDirname("firewalld")
	return cmd
}

// readSources reads what the flags name, or this host.
func (e *env) readSources(im *imported, cmd *cobra.Command, firewalldDir, iptables, nft string, own bool) error {
	given := cmd.Flags().Changed
	if !given("firewalld") && !given("iptables-save") && !given("nft") {
		return im.readHost(own)
	}
	if iptables == "-" && nft == "-" {
		return usagef("--iptables-save - and --nft -: standard input can be only one of them")
	}
	if given("firewalld") {
		if err := im.parseFirewalld(firewalldDir); err != nil {
			return err
		}
	}
	im.iptablesRead = given("iptables-save")
	for _, source := range []struct {
		flag, file string
		parse      func(file, text string) error
	}{{"iptables-save", iptables, im.parseIptables}, {"nft", nft, im.parseNft}} {
		if !given(source.flag) {
			continue
		}
		name, text, err := e.readSource(source.file)
		if err != nil {
			return usagef("--%s %s: %w", source.flag, source.file, err)
		}
		if err := source.parse(name, text); err != nil {
			return err
		}
	}
	return nil
}

func (e *env) readSource(file string) (name, text string, err error) {
	var b []byte
	if file == "-" || file == "/dev/stdin" {
		file = "stdin"
		b, err = io.ReadAll(io.LimitReader(e.stdin, maxConfig+1))
	} else {
		b, err = readFile(file)
	}
	var path *os.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	if err == nil && len(b) > maxConfig {
		err = fmt.Errorf("larger than %d bytes", maxConfig)
	}
	return file, string(b), err
}

// writeImport writes the configuration, and what is to be said of it.
func (e *env) writeImport(im *imported) error {
	cfg := im.build()
	if cfg.NAT == nil && len(cfg.Mirrors) == 0 {
		for _, n := range im.notes {
			fmt.Fprintln(e.stderr, "note: "+printable(n))
		}
		if im.count == 0 {
			return errors.New("nothing to import: there are no rules")
		}
		return fmt.Errorf("nothing to import: of %d rules none translates addresses or copies packets in a way that has a counterpart here", im.count)
	}
	if !hasRole(cfg, loader.RoleDMZ) && len(cfg.Mirrors) > 0 {
		im.note("no interface has the sensor's network: add dmz: {interfaces: [NAME]} to zones:, or run the import on the gateway itself")
	}
	if err := e.write(importText(im, cfg)); err != nil {
		return err
	}
	for _, n := range im.notes {
		fmt.Fprintln(e.stderr, "note: "+printable(n))
	}
	return nil
}

func hasRole(cfg loader.Config, role loader.Role) bool {
	for _, z := range cfg.Zones {
		if z.Role == role {
			return true
		}
	}
	return false
}

// importText is the file: what to know, then the configuration.
func importText(im *imported, cfg loader.Config) string {
	var b strings.Builder
	line := func(format string, args ...any) {
		b.WriteString(strings.TrimRight("# "+printable(fmt.Sprintf(format, args...)), " ") + "\n")
	}
	line("Written by tapgate import from %s.", strings.Join(im.from, " and "))
	if len(im.undone) == 0 {
		line("Read it, then: tapgate check -f FILE; tapgate apply -f FILE")
	} else {
		line("Read it, then: tapgate check -f FILE; tapgate apply --cut-over -f FILE")
		line("and right after it take away what the host has for the same, or it is done twice:")
		reload := false
		for _, u := range im.undone {
			line("  %s", u)
			reload = reload || strings.HasPrefix(u, "firewall-cmd")
		}
		if reload {
			line("  firewall-cmd --reload")
		}
	}
	if len(im.notes) > 0 {
		line("")
		line("To know:")
		for _, n := range im.notes {
			line("- %s", n)
		}
	}
	return b.String() + formatConfig(cfg)
}
