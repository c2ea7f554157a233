package main

import (
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

const forceConfig = "do what is refused for your own good, as cutting off the SSH connection in use"

func newApplyCommand(e *env, g *globals) *cobra.Command {
	var force, cutOver bool
	a := &applying{env: e, g: g}
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Put a configuration file in force",
		Long: `Puts a configuration file in force: what is missing is created, what is no
longer named is taken away, traffic is not interrupted. All or nothing. Flows
that a rule admitted stay when it goes; "tapgate flows flush" ends flows.

What will change is printed first: + added, - removed, ~ changed. --dry-run does no
more than that. With --confirm 60s all goes back by itself after that time, unless
"tapgate confirm" comes: the kernel does it, no process and no connection is needed.
Until then nothing else can be changed.

A host that masquerades the same flows itself is refused, with the command that
ends it. With --cut-over its open connections go on: apply, then run that command.
The way back: first the host's rules, then "tapgate detach".

A file looks like this; zones named otherwise say "role: internal" and so on:

  zones:
    external: {interfaces: [eth0]}
    internal: {interfaces: [eth3]}
    dmz:      {interfaces: [eth2]}
    mgmt:     {interfaces: [eth4]}
  nat:                                  # without nat: and policies: it only taps
    masquerade:
      - {from: internal, to: external}
    forwards:
      - {name: rdp, in: external, proto: tcp, port: 3389, to: "192.168.3.3:3389"}
  policies:
    - {from: mgmt, to: external, proto: tcp, ports: [80, 443], action: accept}
  forwarding: fast                      # known flows past the host's stack (default), or kernel
  mirrors:
    - name: ids
      zones: [internal]
      targets:
        - {via: 192.168.4.2}            # next hop in the dmz
        - {l2: eth2}                    # the frame as it is; optional: mac: ADDR`,
		Example: `  tapgate apply -f /etc/tapgate/tapgate.yaml
  tapgate apply -f new.yaml --dry-run
  tapgate apply -f new.yaml --confirm 60s   # then in a new connection: tapgate confirm
  generate-config | tapgate apply -f -`,
		Args: noArgs,
		RunE: e.privileged(func(cmd *cobra.Command, _ []string) error {
			opt, err := g.options(force)
			if err != nil {
				return err
			}
			opt.CutOver = cutOver
			if cmd.Flags().Changed("confirm") {
				if err := checkConfirm(a.confirm); err != nil {
					return err
				}
				opt.Confirm = a.confirm
			}
			return a.run(opt)
		}),
	}
	addFile(cmd, &a.file)
	cmd.Flags().BoolVar(&a.dryRun, "dry-run", false, "print what would change, and change nothing")
	cmd.Flags().DurationVar(&a.confirm, "confirm", 0, "go back after this `TIME` (5s to 1h) unless \"tapgate confirm\" comes")
	cmd.Flags().BoolVar(&a.confirmed, "confirmed", false, "apply what was confirmed last, and FILE only if there is nothing: for the boot")
	addJSON(cmd, &a.asJSON)
	addForce(cmd, &force, forceConfig)
	cmd.Flags().BoolVar(&cutOver, "cut-over", false, "take over from a host that masquerades itself, whose rule goes right after")
	cmd.MarkFlagsMutuallyExclusive("confirm", "cut-over")
	return cmd
}

func addFile(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "file", "f", "", "configuration `FILE`; - is standard input")
	_ = cmd.MarkFlagFilename("file", "yaml", "yml")
}

// readConfig reads and parses a configuration file or standard input.
func (e *env) readConfig(file string) (*document, error) {
	var text []byte
	var from loader.SourceFile
	var err error
	switch file {
	case "":
		return nil, usagef("which configuration? -f FILE, or -f - for standard input")
	case "-", "/dev/stdin":
		file = "stdin"
		text, err = io.ReadAll(io.LimitReader(e.stdin, maxConfig+1))
	default:
		text, err = readFile(file)
		from = sourceFile(file, text)
	}
	if err != nil {
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return nil, usagef("%s: %w", file, err)
	}
	doc, err := parseConfig(file, text)
	if err != nil {
		return nil, err
	}
	doc.File = from
	return doc, nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxConfig+1))
}
