package strictyaml

import (
	"slices"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// A resolver replaces anchors, aliases and merge keys by what they stand for, so that
// every value can be checked at its own place.
type resolver struct {
	anchors map[string]ast.Node
	open    map[string]bool // anchors whose values are being resolved
	copied  int             // nodes
}

// maxCopied bounds the nodes that aliases stand for. Aliases of aliases grow
// exponentially.
const maxCopied = 100_000

func (r *resolver) resolve(node ast.Node) (ast.Node, error) {
	switch n := node.(type) {
	case *ast.AnchorNode:
		name := n.Name.GetToken().Value
		r.open[name] = true
		value, err := r.resolve(n.Value)
		delete(r.open, name)
		r.anchors[name] = value
		return value, err
	case *ast.AliasNode:
		return r.alias(n)
	case *ast.TagNode:
		return r.tag(n)
	case *ast.MappingNode:
		return n, r.mapping(n)
	case *ast.MappingValueNode:
		value, err := r.resolve(n.Value)
		n.Value = value
		return n, err
	case *ast.SequenceNode:
		for i, item := range n.Values {
			value, err := r.resolve(item)
			if err != nil {
				return nil, err
			}
			n.Values[i] = value
		}
	}
	return node, nil
}

func (r *resolver) alias(n *ast.AliasNode) (ast.Node, error) {
	name := n.Value.GetToken().Value
	value, known := r.anchors[name]
	switch {
	case r.open[name]:
		return nil, errorAt(n, "the anchor &%s contains itself: write the value out", name)
	case !known:
		return nil, errorAt(n, "the anchor &%s does not exist above: correct the name", name)
	}
	value = r.clone(value)
	if r.copied > maxCopied {
		return nil, errorAt(n, "the aliases of this file stand for more than %d values: write fewer", maxCopied)
	}
	return value, nil
}

// clone copies mappings and lists, so that a change at one place does not reach the
// others. Nothing changes a scalar.
func (r *resolver) clone(node ast.Node) ast.Node {
	if r.copied++; r.copied > maxCopied {
		return node
	}
	switch n := node.(type) {
	case *ast.MappingNode:
		c := *n
		c.Values = slices.Clone(n.Values)
		for i, v := range c.Values {
			c.Values[i] = r.clone(v).(*ast.MappingValueNode)
		}
		return &c
	case *ast.MappingValueNode:
		c := *n
		c.Value = r.clone(n.Value)
		return &c
	case *ast.SequenceNode:
		c := *n
		c.Values = slices.Clone(n.Values)
		for i, v := range c.Values {
			c.Values[i] = r.clone(v)
		}
		return &c
	}
	return node
}

// tag accepts !!str, which keeps a text as written. Other tags convert the value.
func (r *resolver) tag(n *ast.TagNode) (ast.Node, error) {
	value, err := r.resolve(n.Value)
	if err != nil {
		return nil, err
	}
	if value.GetToken().Type == token.ImplicitNullType {
		return nil, errorAt(n, "the tag %s has no value: write one, or \"\" if it is empty", n.GetToken().Value)
	}
	if _, isScalar := value.(ast.ScalarNode); n.GetToken().Value != "!!str" || !isScalar {
		return nil, errorAt(n, "the tag %s is not supported: remove it", n.GetToken().Value)
	}
	return asString(value), nil
}

// mapping resolves the entries of a mapping and puts merged ones behind its own.
func (r *resolver) mapping(n *ast.MappingNode) error {
	own := map[string]bool{}
	var entries, merged []*ast.MappingValueNode
	for _, v := range n.Values {
		if _, complex := v.Key.(*ast.MappingKeyNode); complex {
			return errorAt(v.Key, "a key with a question mark is not supported: write \"key: value\"")
		}
		if err := split(n, v); err != nil {
			return err
		}
		value, err := r.resolve(v.Value)
		if err != nil {
			return err
		}
		v.Value = value
		if v.Key.IsMergeKey() {
			if merged, err = appendMerged(merged, v.Value); err != nil {
				return err
			}
			continue
		}
		own[keyText(v)] = true
		entries = append(entries, v)
	}
	for _, v := range merged {
		if !own[keyText(v)] { // of several merged mappings, the first one wins
			own[keyText(v)] = true
			entries = append(entries, v)
		}
	}
	n.Values = entries
	return nil
}

// split rejects an entry such as {a:b} in braces. For YAML it is the name "a:b" (YAML
// 1.2.2, section 7.3.3), but the parser reads it as the name a.
func split(n *ast.MappingNode, v *ast.MappingValueNode) error {
	key, colon := v.Key.GetToken(), v.Start
	if !n.IsFlowStyle || key.Type != token.StringType || colon.Next == nil {
		return nil
	}
	next := colon.Next
	if next.Position.Line != colon.Position.Line || next.Position.Column != colon.Position.Column+1 || next.Type == token.MappingEndType || next.Type == token.CollectEntryType {
		return nil
	}
	return errorAt(v.Key, "quote the name with a colon: %q; or write a space after the colon of a value", key.Value+":"+next.Value)
}

func keyText(v *ast.MappingValueNode) string { return v.Key.GetToken().Value }

func appendMerged(list []*ast.MappingValueNode, node ast.Node) ([]*ast.MappingValueNode, error) {
	switch n := node.(type) {
	case *ast.MappingNode:
		return append(list, n.Values...), nil
	case *ast.MappingValueNode:
		return append(list, n), nil
	case *ast.SequenceNode:
		var err error
		for _, item := range n.Values {
			if list, err = appendMerged(list, item); err != nil {
				return nil, err
			}
		}
		return list, nil
	}
	return nil, errorAt(node, "<< needs a mapping, such as *name, or a list of them")
}
