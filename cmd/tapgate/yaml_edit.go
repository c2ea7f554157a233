package main

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// yamlText is the text of a configuration whose lists can be changed without touching
// anything else in it: comments, order, quotes and the ends of lines stay. The library
// can write its tree as well, but loses empty lines and indentation. Whether the text
// then says what it should is for the caller to read again: YAML can be written in more
// ways than are known here.
type yamlText struct {
	lines   []string // with their ends
	newline string
	root    ast.Node
}

// yamlItem is an item to add, as lines below each other and in one line.
type yamlItem struct {
	block []string
	flow  string
}

var errAlias = errors.New("it is written with an alias (*NAME)")

// text is the text of a document, to be changed.
func (d *document) text() *yamlText {
	y := &yamlText{lines: strings.SplitAfter(d.Source, "\n"), newline: "\n", root: d.root}
	if strings.HasSuffix(y.lines[0], "\r\n") {
		y.newline = "\r\n"
	}
	if last := len(y.lines) - 1; y.lines[last] == "" {
		y.lines = y.lines[:last]
	}
	return y
}

func (y *yamlText) String() string { return strings.Join(y.lines, "") }

// bare is what an anchor or a tag stands before.
func bare(n ast.Node) (ast.Node, error) {
	for {
		switch t := n.(type) {
		case *ast.AnchorNode:
			n = t.Value
		case *ast.TagNode:
			n = t.Value
		case *ast.AliasNode:
			return nil, errAlias
		default:
			return n, nil
		}
	}
}

// entriesOf gives the entries of a mapping, and its closing brace if it is in flow style.
func entriesOf(n ast.Node) (entries []*ast.MappingValueNode, brace *token.Token, err error) {
	if n, err = bare(n); err != nil {
		return nil, nil, err
	}
	switch t := n.(type) {
	case *ast.MappingNode:
		if t.IsFlowStyle {
			brace = t.End
		}
		return t.Values, brace, nil
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{t}, nil, nil
	}
	return nil, nil, fmt.Errorf("it has %s where a mapping was expected", describe(n))
}

func entryOf(n ast.Node, key string) (*ast.MappingValueNode, error) {
	entries, _, err := entriesOf(n)
	for _, e := range entries {
		if e.Key.GetToken().Value == key {
			return e, err
		}
	}
	return nil, err
}

// list finds the list at keys; nil if there is none, or nothing in it.
func (y *yamlText) list(top ast.Node, keys ...string) (*ast.SequenceNode, error) {
	for _, key := range keys {
		e, err := entryOf(top, key)
		if err != nil || e == nil {
			return nil, err
		}
		if top, err = bare(e.Value); err != nil {
			return nil, err
		}
		if _, nothing := top.(*ast.NullNode); nothing {
			return nil, nil
		}
	}
	list, ok := top.(*ast.SequenceNode)
	if !ok {
		return nil, fmt.Errorf("it has %s where a list was expected", describe(top))
	}
	return list, nil
}

// add appends an item to the list at keys below top, and makes what is missing of them.
func (y *yamlText) add(top ast.Node, item yamlItem, keys ...string) error {
	var holder *ast.MappingValueNode // of top; nil if that is the root
	for i, key := range keys {
		entries, brace, err := entriesOf(top)
		if err != nil {
			return err
		}
		e, err := entryOf(top, key)
		switch {
		case err != nil:
			return err
		case e == nil && brace == nil && len(entries) == 0:
			return errors.New("it has an empty mapping in a way that cannot be added to")
		case e == nil && brace != nil:
			return y.insertFlow(brace, len(entries) == 0, flowOf(keys[i:], item))
		case e == nil:
			return y.addKey(holder, entries[0], y.lastLine(), keys[i:], item)
		}
		if top, err = bare(e.Value); err != nil {
			return err
		}
		if _, nothing := top.(*ast.NullNode); nothing {
			at, err := y.place(e.Key.GetToken())
			if err != nil {
				return err
			}
			if brace != nil || !bareKey(y.lines[at.Line-1]) { // null, ~, or a brace behind
				return fmt.Errorf("line %d: %s is empty in a way that cannot be added to", at.Line, key)
			}
			y.insert(at.Line, y.blockOf(at.Column+1, keys[i+1:], item))
			return nil
		}
		holder = e
	}
	list, ok := top.(*ast.SequenceNode)
	switch {
	case !ok:
		return fmt.Errorf("it has %s where a list was expected", describe(top))
	case list.IsFlowStyle:
		return y.insertFlow(list.End, len(list.Values) == 0, item.flow)
	}
	at, err := y.dash(list, len(list.Values)-1)
	if err != nil {
		return err
	}
	y.insert(y.blockEnd(at.Line-1, at.Column-1), y.blockOf(at.Column-1, nil, item))
	return nil
}

// addKey puts keys that are new behind all that holder, if any, holds in block style, or
// else at the end.
func (y *yamlText) addKey(holder, sibling *ast.MappingValueNode, end int, keys []string, item yamlItem) error {
	beside, err := y.place(sibling.Key.GetToken())
	if err != nil {
		return err
	}
	if holder != nil {
		at, err := y.place(holder.Key.GetToken())
		if err != nil {
			return err
		}
		end = y.blockEnd(at.Line-1, at.Column-1)
	}
	y.insert(end, y.blockOf(beside.Column-1, keys, item))
	return nil
}

// place is where a token stands. The library's count of lines is not relied on.
func (y *yamlText) place(t *token.Token) (*token.Position, error) {
	if t == nil || t.Position == nil || t.Position.Line < 1 || t.Position.Line > len(y.lines) ||
		t.Position.Column < 1 || t.Position.Column > len(y.lines[t.Position.Line-1]) {
		return nil, errors.New("something in it stands where it was not expected")
	}
	return t.Position, nil
}

// bareKey says whether nothing but perhaps a comment follows the key of a line.
func bareKey(line string) bool {
	_, rest, _ := strings.Cut(line, ":")
	rest = strings.TrimSpace(rest)
	return rest == "" || rest[0] == '#'
}

// blockOf is an item as lines at an indentation, below keys that are new.
func (y *yamlText) blockOf(indent int, keys []string, item yamlItem) (lines []string) {
	pad := func() string { return strings.Repeat(" ", indent) }
	for _, key := range keys {
		lines = append(lines, pad()+key+":"+y.newline)
		indent += 2
	}
	for i, text := range item.block {
		lead := "  "
		if i == 0 {
			lead = "- "
		}
		lines = append(lines, pad()+lead+text+y.newline)
	}
	return lines
}

// flowOf is an item in one line, within keys that are new.
func flowOf(keys []string, item yamlItem) string {
	text := "[" + item.flow + "]"
	for i := len(keys) - 1; i >= 0; i-- {
		if text = keys[i] + ": " + text; i > 0 {
			text = "{" + text + "}"
		}
	}
	return text
}

// insert puts lines before the line of this index.
func (y *yamlText) insert(at int, lines []string) {
	if at > 0 && !strings.HasSuffix(y.lines[at-1], "\n") {
		y.lines[at-1] += y.newline
	}
	y.replace(at, at, lines)
}

func (y *yamlText) replace(first, end int, lines []string) {
	y.lines = append(append(append([]string{}, y.lines[:first]...), lines...), y.lines[end:]...)
}

// lastLine is where what is new at the root goes: behind all, but for empty lines and
// the mark of the document's end.
func (y *yamlText) lastLine() int {
	end := len(y.lines)
	for end > 0 && (isBlank(y.lines[end-1]) || strings.HasPrefix(y.lines[end-1], "...")) {
		end--
	}
	return end
}

// blockEnd is behind the last line of what begins in a line at an indentation. Comments
// that are set deeper and follow at once belong to it.
func (y *yamlText) blockEnd(first, indent int) int {
	end := first + 1
	for i := end; i < len(y.lines); i++ {
		line := y.lines[i]
		switch {
		case isBlank(line), isComment(line) && (indentOf(line) <= indent || i > end):
		case indentOf(line) <= indent:
			return end
		default:
			end = i + 1
		}
	}
	return end
}

func isBlank(line string) bool   { return strings.TrimSpace(line) == "" }
func isComment(line string) bool { return strings.HasPrefix(strings.TrimSpace(line), "#") }
func indentOf(line string) int   { return len(line) - len(strings.TrimLeft(line, " ")) }

// dash is where an item of a list in block style begins.
func (y *yamlText) dash(list *ast.SequenceNode, i int) (*token.Position, error) {
	if len(list.Entries) != len(list.Values) || i < 0 || list.Entries[i] == nil {
		return nil, errors.New("its list is written in a way that is not known here")
	}
	at, err := y.place(list.Entries[i].Start)
	if err != nil {
		return nil, err
	}
	if line := y.lines[at.Line-1]; indentOf(line) != at.Column-1 || line[at.Column-1] != '-' {
		return nil, fmt.Errorf("line %d: an item begins behind something else", at.Line)
	}
	return at, nil
}

// del takes an item out of a list. Comments above it stay: who knows what else they are
// about, and one that is stale is easily deleted.
func (y *yamlText) del(list *ast.SequenceNode, i int) error {
	if list.IsFlowStyle {
		return y.delFlow(list, i)
	}
	at, err := y.dash(list, i)
	if err != nil {
		return err
	}
	indent := at.Column - 1
	first, end := at.Line-1, y.blockEnd(at.Line-1, indent)
	if first > 0 && isBlank(y.lines[first-1]) && (end == len(y.lines) || isBlank(y.lines[end])) {
		first-- // of two empty lines one
	}
	y.replace(first, end, nil)
	return nil
}

func (y *yamlText) delFlow(list *ast.SequenceNode, i int) error {
	ends := make([][2]int, len(list.Values)) // where items begin and end
	for k, v := range list.Values {
		m, ok := v.(*ast.MappingNode)
		if !ok || !m.IsFlowStyle {
			return errors.New("its list is written in a way that is not known here")
		}
		begin, err := y.offset(m.Start, "{")
		end, err2 := y.offset(m.End, "}")
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		ends[k] = [2]int{begin, end + 1}
	}
	first, end := ends[i][0], ends[i][1]
	switch {
	case i+1 < len(ends):
		end = ends[i+1][0]
	case i > 0:
		first = ends[i-1][1]
	}
	text := y.String()
	if strings.Contains(text[first:end], "#") {
		return errors.New("a comment stands within the list")
	}
	y.lines = strings.SplitAfter(text[:first]+text[end:], "\n")
	return nil
}

// insertFlow puts text before a closing bracket or brace, as one more item or entry.
func (y *yamlText) insertFlow(closing *token.Token, empty bool, item string) error {
	at, err := y.offset(closing, closing.Value)
	if err != nil {
		return err
	}
	text := y.String()
	before := strings.TrimRight(text[:at], " \t\r\n")
	if strings.Contains(before[strings.LastIndexByte(before, '\n')+1:], "#") {
		before = text[:at] // what is added must not become a comment
	}
	last := closing.Prev
	for last != nil && last.Type == token.CommentType {
		last = last.Prev
	}
	switch {
	case empty:
	case last != nil && last.Type == token.CollectEntryType: // a comma already
		item = " " + item
	default:
		item = ", " + item
	}
	y.lines = strings.SplitAfter(before+item+text[len(before):], "\n")
	return nil
}

// offset is where a token stands in the text, which must be this one.
func (y *yamlText) offset(t *token.Token, want string) (int, error) {
	at, err := y.place(t)
	if err != nil {
		return 0, err
	}
	sum := 0
	for _, l := range y.lines[:at.Line-1] {
		sum += len(l)
	}
	line := y.lines[at.Line-1]
	for range at.Column - 1 {
		_, n := utf8.DecodeRuneInString(line)
		line = line[n:]
		sum += n
	}
	if !strings.HasPrefix(line, want) {
		return 0, fmt.Errorf("line %d: no %q where one was expected", at.Line, want)
	}
	return sum, nil
}
