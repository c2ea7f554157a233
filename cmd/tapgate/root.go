package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"tapgate/loader"
)

// globals are the flags of every command.
type globals struct {
	netns       string
	bpffs       string
	stateDir    string
	verbose     bool
	lockTimeout time.Duration
	attachKind  attachKind
	given       func(flag string) bool // on the command line
}

func newRootCommand(e *env, started *bool) *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:   "tapgate",
		Short: "A gateway that shows a sensor every packet that passes it",
		Long: `tapgate copies every packet of a gateway's internal interfaces, both directions
and with inside addresses, to a sensor behind a dmz interface. With nat: or
policies: in the configuration it is the gateway itself: it judges what passes
between zones, translates addresses and forwards ports. It needs no daemon: the
programs and all state are in the kernel.

A configuration file says what shall be; "tapgate apply -f FILE" puts it in
force, "tapgate status" shows it, "tapgate detach" takes everything away.

Exit codes: 0 done or already so, 1 failed, 2 usage or bad config,
3 not attached, 4 another tapgate is at work.`,
		Example: `  tapgate demo
  tapgate attach --internal eth3 --dmz eth2 --sensor 192.168.4.2
  tapgate apply -f /etc/tapgate/tapgate.yaml
  tapgate status`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)

	p := root.PersistentFlags()
	g.given = p.Changed
	p.StringVar(&g.netns, "netns", "", "gateway in this network namespace, a `NAME` under /run/netns or a path")
	p.StringVar(&g.bpffs, "bpffs", loader.DefaultBPFFS, "mount point of the BPF filesystem")
	p.StringVar(&g.stateDir, "state-dir", defaultStateDir, "keep what was confirmed in `DIR` for the next boot; with --netns only if given")
	p.BoolVarP(&g.verbose, "verbose", "v", false, "say more; verifier errors with the whole log")
	p.DurationVar(&g.lockTimeout, "lock-timeout", 5*time.Second, "how long to wait for another tapgate")
	p.Var(&g.attachKind, "attach-kind", "auto, tcx or clsact")
	_ = p.MarkHidden("attach-kind")
	_ = root.RegisterFlagCompletionFunc("netns", completeNetns)

	root.AddCommand(
		newAgentCommand(e, g),
		newApplyCommand(e, g),
		newAttachCommand(e, g),
		newCheckCommand(e, g),
		newConfigCommand(e, g),
		newConfirmCommand(e, g),
		newDemoCommand(e),
		newDetachCommand(e, g),
		newExplainCommand(e, g),
		newFlowsCommand(e, g),
		newForwardCommand(e, g),
		newImportCommand(e, g),
		newManCommand(),
		newMasqueradeCommand(e, g),
		newMirrorCommand(e, g),
		newPolicyCommand(e, g),
		newReportCommand(e, g),
		newRollbackCommand(e, g),
		newStatusCommand(e, g),
		newTopCommand(e, g),
		newUpgradeCommand(e, g),
		newVersionCommand(e),
	)
	for _, page := range manualPages {
		root.AddCommand(newTopicCommand(page))
	}
	addCompletion(root)
	markStarted(root, started)
	return root
}

// markStarted tells run that a command line was understood: from then on errors
// are not about usage unless they say so.
func markStarted(c *cobra.Command, started *bool) {
	if inner := c.RunE; inner != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			*started = true
			return inner(cmd, args)
		}
	}
	for _, sub := range c.Commands() {
		markStarted(sub, started)
	}
}

// options checks the global flags and turns them into the loader's.
func (g *globals) options(force bool) (loader.Options, error) {
	if g.lockTimeout <= 0 {
		return loader.Options{}, usagef("--lock-timeout %v: must be above zero", g.lockTimeout)
	}
	if g.bpffs == "" {
		return loader.Options{}, usagef("--bpffs: must not be empty")
	}
	if g.given("netns") {
		if err := checkNetns(g.netns); err != nil {
			return loader.Options{}, err
		}
	}
	return loader.Options{
		Netns:       g.netns,
		BPFFS:       g.bpffs,
		LockTimeout: g.lockTimeout,
		Attach:      loader.AttachKind(g.attachKind),
		Force:       force,
		Verbose:     g.verbose,
	}, nil
}

// netnsDir is where "ip netns" keeps its names.
const netnsDir = "/run/netns"

// checkNetns tells a mistyped namespace from everything else that can go wrong.
func checkNetns(ns string) error {
	path := ns
	switch {
	case ns == "":
		return usagef("--netns: must not be empty; leave it out for the namespace that tapgate runs in")
	case !strings.Contains(ns, "/"):
		path = filepath.Join(netnsDir, ns)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case err == nil:
		defer unix.Close(fd)
		if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
			return usagef("--netns %s is not a network namespace; give a name under %s, or a path as /proc/PID/ns/net", ns, netnsDir)
		}
		return nil
	case !errors.Is(err, os.ErrNotExist):
		return usagef("--netns %s: %v", ns, err)
	case path == ns:
		return usagef("--netns %s: no such file", ns)
	}
	names := netnsNames()
	if len(names) == 0 {
		return usagef("--netns %s: there is no named network namespace; a path works as well, as /proc/PID/ns/net", ns)
	}
	return usagef("--netns %s: no such network namespace%s", ns, didYouMean(ns, names))
}

func netnsNames() []string {
	entries, _ := os.ReadDir(netnsDir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

// noArgs is for commands that take flags only.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "; see " + cmd.CommandPath() + " --help"
	if f := cmd.Flags().Lookup("file"); f != nil && !f.Changed {
		hint = "; did you mean -f " + args[0] + "?"
	}
	for _, sub := range cmd.Commands() {
		if distance(args[0], sub.Name()) < 3 {
			hint = fmt.Sprintf("; did you mean %q?", sub.Name())
		}
	}
	name := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
	return usagef("%s takes no arguments, only flags; got %q%s", name, args[0], hint)
}

// needSubcommand makes cmd refuse to run without one of its subcommands.
func needSubcommand(cmd *cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		var names []string
		for _, c := range cmd.Commands() {
			names = append(names, c.Name())
		}
		if len(args) == 0 {
			return usagef("%s what? One of %s; see %s --help", cmd.Name(), strings.Join(names, ", "), cmd.CommandPath())
		}
		return usagef("unknown command %q for %s%s", args[0], cmd.Name(), didYouMean(args[0], names))
	}
	cmd.RunE = func(*cobra.Command, []string) error { return nil }
}

// attachKind is a flag value: auto, tcx or clsact.
type attachKind loader.AttachKind

func (k *attachKind) String() string {
	if *k == attachKind(loader.AttachAuto) {
		return "auto"
	}
	return string(*k)
}

func (k *attachKind) Set(s string) error {
	switch s {
	case "auto":
		*k = attachKind(loader.AttachAuto)
	case string(loader.AttachTCX), string(loader.AttachClsact):
		*k = attachKind(s)
	default:
		return fmt.Errorf("must be auto, tcx or clsact")
	}
	return nil
}

func (k *attachKind) Type() string { return "kind" }
