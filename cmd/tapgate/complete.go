package main

import (
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

// completeWait is how long a completion waits for another tapgate: a user has
// pressed a key.
const completeWait = 200 * time.Millisecond

// addCompletion adds cobra's command for shell completion now, not when root is
// executed, so that it is held to the same rules as the other commands.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() != "completion" {
			continue
		}
		c.Example = "  source <(tapgate completion bash)"
		needSubcommand(c)
		for _, shell := range c.Commands() {
			shell.Args = noArgs
			shell.Example = "  " + shell.CommandPath()
		}
	}
}

// inForce is the configuration in force, for completions: nothing where there
// is none, or where it cannot be read.
func (e *env) inForce(g *globals) (cfg loader.Config) {
	opt, err := g.options(false)
	if err != nil || e.needRoot() != nil {
		return cfg
	}
	opt.LockTimeout = min(opt.LockTimeout, completeWait)
	gw, err := e.loader().Open(opt, loader.ReadOnly)
	if err != nil {
		return cfg
	}
	defer gw.Close()
	if doc, err := parseConfig("", []byte(gw.Source())); err == nil {
		cfg = doc.Config
	}
	return cfg
}

// completeName completes the one argument that names a rule in force.
func (e *env) completeName(g *globals, names func(loader.Config) []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return beginning(part, names(e.inForce(g))), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeZones completes a list of zones in force that a mirror may have.
func (e *env) completeZones(g *globals) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, part string) ([]string, cobra.ShellCompDirective) {
		before := part[:strings.LastIndex(part, ",")+1]
		var lists []string
		for _, z := range e.inForce(g).Zones {
			if z.Role != loader.RoleDMZ && !slices.Contains(strings.Split(before, ","), z.Name) {
				lists = append(lists, before+z.Name)
			}
		}
		return beginning(part, lists), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeNetns completes the name of a network namespace, or a path.
func completeNetns(_ *cobra.Command, _ []string, part string) ([]string, cobra.ShellCompDirective) {
	if strings.Contains(part, "/") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return beginning(part, netnsNames()), cobra.ShellCompDirectiveNoFileComp
}

func beginning(part string, words []string) []string {
	return slices.DeleteFunc(words, func(w string) bool { return !strings.HasPrefix(w, part) })
}

// completeZone completes one zone in force, of one of these roles if any is given.
func (e *env) completeZone(g *globals, roles ...loader.Role) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, part string) ([]string, cobra.ShellCompDirective) {
		var names []string
		for _, z := range e.inForce(g).Zones {
			if len(roles) == 0 || slices.Contains(roles, z.Role) {
				names = append(names, z.Name)
			}
		}
		return beginning(part, names), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeWords completes a value that is one of a few.
func completeWords(words ...string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, part string) ([]string, cobra.ShellCompDirective) {
		return beginning(part, slices.Clone(words)), cobra.ShellCompDirectiveNoFileComp
	}
}
