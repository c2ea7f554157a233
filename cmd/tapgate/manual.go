package main

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
)

// manualPage is a page that is about no command. It is shown as a help topic and
// shipped as a manual page; the e2e tests type what stands on it.
type manualPage struct {
	topic   string // "tapgate help TOPIC"
	name    string // of the page
	section string
	title   string // of the section
	short   string
	text    string // Markdown
}

var (
	//go:embed manual/troubleshooting.md
	troubleshootingText string
	//go:embed manual/tapgate.yaml.md
	configurationText string
	//go:embed manual/operations.md
	operationsText string
	//go:embed manual/accounting.md
	accountingText string
	//go:embed manual/limits.md
	limitsText string
)

// miscellany is the name of section 7.
const miscellany = "Miscellaneous Information Manual"

var manualPages = []manualPage{
	{"troubleshooting", "tapgate-troubleshooting", "7", miscellany, "From what you see to what it is and what helps", troubleshootingText},
	{"tapgate.yaml", "tapgate.yaml", "5", "File Formats Manual", "All keys of the configuration, their defaults and units", configurationText},
	{"operations", "tapgate-operations", "7", miscellany, "Take over a gateway, change it, watch it, upgrade it, boot it", operationsText},
	{"accounting", "tapgate-accounting", "7", miscellany, "What of every packet is counted, and how to prove that nothing is missing", accountingText},
	{"limits", "tapgate-limits", "7", miscellany, "What tapgate does not do, and what it takes for granted", limitsText},
}

// newTopicCommand makes a help topic: a command that does nothing but tell.
func newTopicCommand(p manualPage) *cobra.Command {
	return &cobra.Command{Use: p.topic, Short: p.short, Long: p.text}
}

// writeManualPages writes those pages into a folder, as NAME.SECTION.
func writeManualPages(dir string) error {
	for _, p := range manualPages {
		head := fmt.Sprintf("%% %q %q %q %q %q\n", p.name, p.section, "", "tapgate", p.title)
		roff := md2man.Render([]byte(head + p.text))
		if err := os.WriteFile(filepath.Join(dir, p.name+"."+p.section), roff, 0o644); err != nil {
			return fmt.Errorf("write a manual page: %w", err)
		}
	}
	return nil
}
