package main

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/goccy/go-yaml/token"
)

// What people most often got wrong where the reader of YAML, or of a value, only knows
// that it cannot go on.

// syntaxHint ends the message about a file that is no YAML, where the line shows why.
func syntaxHint(text []byte, at token.Position, message string) string {
	line := lineAt(text, at.Line)
	bare := strings.TrimSpace(line)
	odd, isOdd := oddSpace(lineAt(text, at.Line-1) + line) // what it makes of a key may be told on the next line
	for _, h := range []struct {
		applies bool
		hint    string
	}{
		{strings.ContainsRune(message, '\t') || strings.HasPrefix(line, "\t"), "indent with spaces, not tabs"},
		{isOdd, fmt.Sprintf("here or in the line above is a character that looks like a space or like nothing (%U): put a plain space, or none", odd)},
		{strings.Contains("\n"+string(text), "\n<<<<<<< "), "it holds the marks of a merge (<<<<<<<)"},
		{strings.HasPrefix(bare, ";") || strings.HasPrefix(bare, "//"), "comments begin with #"},
		{strings.Contains(line, "{{") || strings.Contains(line, "${"), "is it a template that was not filled in?"},
		{regexp.MustCompile(`^\[[a-z.]+\]`).Match(text), "sections in brackets are not YAML; write zones: and so on"},
		{regexp.MustCompile(`(^|[{,]\s*)[A-Za-z_]+:[\[{"']`).MatchString(bare), "a space belongs after a colon"},
		{regexp.MustCompile(`^[A-Za-z_-]+$`).MatchString(bare), "a colon belongs behind a key: " + bare + ":"},
		{regexp.MustCompile(`[:\[,]\s*[*&%@]`).MatchString(line), "quote what begins with *, &, % or @"},
		{strings.Contains(message, "not allowed in this context"), "are the keys of one mapping indented alike, and is each bracket and quote closed above?"},
	} {
		if h.applies {
			return "; " + h.hint
		}
	}
	return ""
}

// oddSpace finds what is no plain space and yet cannot be seen.
func oddSpace(line string) (odd rune, found bool) {
	for _, r := range line {
		if r != ' ' && unicode.In(r, unicode.Zs, unicode.Cf) {
			return r, true
		}
	}
	return 0, false
}

func lineAt(text []byte, number int) string {
	lines := strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")
	if number < 1 || number > len(lines) {
		return ""
	}
	return lines[number-1]
}

// addressHint ends the message about what is no IP address.
func addressHint(s string) string {
	host, _, isNetwork := strings.Cut(s, "/")
	if _, err := netip.ParseAddr(host); isNetwork && err == nil {
		return "; did you mean " + host + "? An address has no length"
	}
	if a, err := netip.ParseAddrPort(s); err == nil {
		return "; did you mean " + a.Addr().String() + "? It has no port"
	}
	plain := regexp.MustCompile(`\b0+([0-9])`).ReplaceAllString(s, "$1")
	if a, err := netip.ParseAddr(plain); err == nil {
		return "; did you mean " + a.String() + "? Leading zeros are octal to some"
	}
	if regexp.MustCompile(`^[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*$`).MatchString(s) && strings.ContainsFunc(s, unicode.IsLetter) && !strings.HasPrefix(s, "0x") {
		return "; names are not looked up: give the address"
	}
	return ""
}

// listHint ends the message about one value that holds several.
func listHint(s string) string {
	parts := strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == ';' })
	if len(parts) < 2 || slices.ContainsFunc(parts, func(p string) bool { return !strings.ContainsAny(p, "0123456789") }) {
		return ""
	}
	return "; several are a list: [" + strings.Join(parts, ", ") + "]"
}

// messageLimit is how many bytes of a message are shown: a name may be any length. What
// apply says of the rules of a host ends with the commands that mend it, and is whole.
const messageLimit = 2000

func shortened(s string) string {
	if len(s) <= messageLimit {
		return s
	}
	const end = 150
	return strings.ToValidUTF8(s[:messageLimit-end]+" ... "+s[len(s)-end:], "")
}
