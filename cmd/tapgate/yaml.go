package main

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// yamlReader walks a YAML tree by hand: a decoder into structs would lose the
// order of zones and the line of each value, which the loader's errors need.
// Mistakes are collected, so that the user sees all of them at once.
type yamlReader struct {
	file    string
	places  map[string]token.Position // by path, as in loader.ConfigError
	anchors map[string]ast.Node
	errs    []error
}

// yamlEntry is one key of a mapping, or one item of a list.
type yamlEntry struct {
	key   string
	path  string
	at    token.Position
	value ast.Node
}

func (r *yamlReader) failf(at token.Position, format string, args ...any) {
	r.errs = append(r.errs, &configError{placeText(r.file, at), fmt.Sprintf(format, args...)})
}

func placeText(file string, at token.Position) string {
	return fmt.Sprintf("%s:%d:%d", file, at.Line, at.Column)
}

// parse gives the root of the only document in text, or nil if it is empty.
func (r *yamlReader) parse(text []byte) (ast.Node, error) {
	// The library counts some lines that end as on Windows twice.
	text = bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))
	file, err := parser.ParseBytes(text, 0)
	var syntax *yaml.SyntaxError
	switch {
	case errors.As(err, &syntax) && syntax.Token != nil && syntax.Token.Position != nil:
		at := *syntax.Token.Position
		return nil, &configError{placeText(r.file, at), syntax.Message + syntaxHint(text, at, syntax.Message)}
	case err != nil:
		return nil, &configError{r.file, err.Error()}
	}
	var root ast.Node
	for _, doc := range file.Docs {
		_, directive := doc.Body.(*ast.DirectiveNode) // as %YAML 1.2
		switch {
		case doc.Body == nil, directive:
		case root != nil:
			return nil, &configError{placeText(r.file, nodeAt(doc.Body)), "a second document: the configuration must be one"}
		default:
			root = doc.Body
		}
	}
	if root != nil {
		ast.Walk(r, root)
	}
	return root, nil
}

// Visit collects anchors for parse.
func (r *yamlReader) Visit(n ast.Node) ast.Visitor {
	if a, ok := n.(*ast.AnchorNode); ok && a.Name != nil {
		r.anchors[a.Name.GetToken().Value] = a.Value
	}
	return r
}

// plain follows anchors, aliases and tags to what they stand for.
func (r *yamlReader) plain(n ast.Node) ast.Node {
	// An alias within its own anchor has no end; nobody nests these deeply.
	for range 10 {
		switch t := n.(type) {
		case *ast.AnchorNode:
			n = t.Value
		case *ast.AliasNode:
			to, ok := r.anchors[t.Value.GetToken().Value]
			if !ok {
				return n
			}
			n = to
		case *ast.TagNode:
			n = t.Value
		default:
			return n
		}
	}
	return nil
}

// mapping gives the entries of a mapping in the order of the file. Nothing at
// all counts as an empty one.
func (r *yamlReader) mapping(e yamlEntry, want string) []yamlEntry {
	var values []*ast.MappingValueNode
	switch n := r.plain(e.value).(type) {
	case nil, *ast.NullNode:
		return nil
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		r.failf(nodeAt(e.value), "expected %s, got %s", want, describe(n))
		return nil
	}
	var entries []yamlEntry
	for _, v := range values {
		at := nodeAt(v.Key)
		if _, merge := v.Key.(*ast.MergeKeyNode); merge {
			r.failf(at, `"<<" is not supported: write the keys out`)
			continue
		}
		key := v.Key.GetToken().Value
		path := key
		if e.path != "" {
			path = e.path + "." + key
		}
		r.places[path] = at
		entries = append(entries, yamlEntry{key, path, at, v.Value})
	}
	return entries
}

// list gives the items of a list. Nothing at all counts as an empty one.
func (r *yamlReader) list(e yamlEntry, want string) []yamlEntry {
	switch n := r.plain(e.value).(type) {
	case nil, *ast.NullNode:
		return nil
	case *ast.SequenceNode:
		var items []yamlEntry
		for i, v := range n.Values {
			item := yamlEntry{path: fmt.Sprintf("%s[%d]", e.path, i), at: nodeAt(v), value: v}
			r.places[item.path] = item.at
			items = append(items, item)
		}
		return items
	default:
		r.failf(nodeAt(e.value), "expected %s, got %s", want, describe(n))
		return nil
	}
}

// text gives a scalar as it is written; ok is false if it is none.
func (r *yamlReader) text(e yamlEntry, want string) (s string, ok bool) {
	n := r.plain(e.value)
	at := e.at
	switch t := n.(type) {
	case *ast.StringNode:
		s, ok = t.Value, true
	case *ast.IntegerNode, *ast.FloatNode:
		// An interface may be called 10 or 1e3.
		s, ok = t.GetToken().Value, true
	case nil, *ast.NullNode:
		r.failf(at, "expected %s, got nothing", want)
		return "", false
	}
	at = nodeAt(e.value)
	if !ok {
		r.failf(at, "expected %s, got %s", want, describe(n))
		return "", false
	}
	r.places[e.path] = at
	return s, true
}

// texts gives a list of scalars.
func (r *yamlReader) texts(e yamlEntry, want, each string) []string {
	var all []string
	for _, item := range r.list(e, want) {
		if s, ok := r.text(item, each); ok {
			all = append(all, s)
		}
	}
	return all
}

// nodeAt is where a reader sees a node begin; for a block mapping the library
// points to its first colon.
func nodeAt(n ast.Node) token.Position {
	switch t := n.(type) {
	case *ast.MappingNode:
		if !t.IsFlowStyle && len(t.Values) > 0 {
			return nodeAt(t.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return nodeAt(t.Key)
	}
	if tk := n.GetToken(); tk != nil && tk.Position != nil {
		return *tk.Position
	}
	return token.Position{Line: 1, Column: 1}
}

func describe(n ast.Node) string {
	switch t := n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.AliasNode:
		return "an unknown alias *" + t.Value.GetToken().Value
	case *ast.LiteralNode:
		return "a block of text"
	case *ast.StringNode:
		return fmt.Sprintf("%q", t.Value)
	case nil:
		return "nothing"
	default:
		return n.GetToken().Value + ` (to mean the text, quote it)`
	}
}
