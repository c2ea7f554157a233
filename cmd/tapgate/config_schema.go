package main

import (
	_ "embed"

	"github.com/spf13/cobra"
)

// configSchema describes the configuration file for editors: JSON Schema, draft
// 2020-12. What only this machine or several keys together tell (names of zones,
// interfaces, overlaps) is not in it.
//
//go:embed schema/tapgate.schema.json
var configSchema string

func newConfigSchemaCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON schema of the configuration file, for editors",
		Long: `Prints the JSON schema (draft 2020-12) of the configuration file. Editors with
yaml-language-server complete and check a file that begins with

  # yaml-language-server: $schema=/usr/share/tapgate/tapgate.schema.json

where packages put it. "tapgate check -f FILE" finds what a schema cannot.`,
		Example: "  tapgate config schema >tapgate.schema.json",
		Args:    noArgs,
		RunE:    func(*cobra.Command, []string) error { return e.write(configSchema) },
	}
}
