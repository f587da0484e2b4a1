package scim

import (
	"strings"
)

// A path names attributes (RFC 7644, section 3.5.2): "active", "name.givenName",
// "emails[type eq \"work\"].value", or one of them after the URN of a schema.
type path struct {
	schema *schema    // whose attribute it is; an extension's attributes are below its URN
	attr   *attribute // nil: the whole extension
	filter *filter    // of the values of attr; nil: all
	sub    *attribute // nil: the attribute itself
}

const maxPath = 1024

// parsePath parses the path of a PATCH.
func (t *resourceType) parsePath(s string) (p path, err error) {
	s = strings.TrimSpace(s)
	if len(s) > maxPath {
		return p, bad(typeInvalidPath, "the path is longer than %d bytes", maxPath)
	}
	var rest string
	if p.schema, rest = t.cutURN(s); p.schema == nil {
		return p, bad(typeInvalidPath, "the path names a schema that this resource does not have")
	}
	if rest == "" {
		if p.schema == t.core {
			return p, bad(typeInvalidPath, "the path names no attribute")
		}
		return p, nil
	}
	name, rest := cutName(rest)
	if p.attr = t.attributesOf(p.schema).find(name); p.attr == nil {
		return p, bad(typeInvalidPath, "the path names an attribute that the schema does not have")
	}
	if strings.HasPrefix(rest, "[") {
		if rest, err = p.parseFilter(rest); err != nil {
			return p, err
		}
	}
	return p, p.parseSub(rest)
}

// attributesOf returns the attributes that a path may name in a schema.
func (t *resourceType) attributesOf(s *schema) attributes {
	if s == t.core {
		return t.root
	}
	return s.attributes
}

// parseFilter parses "[filter]" and returns the rest.
func (p *path) parseFilter(s string) (rest string, err error) {
	if !p.attr.multi || p.attr.kind != kindComplex {
		return "", bad(typeInvalidPath, "%s has no values to select", p.attr.name)
	}
	parser := &filterParser{text: s[1:], scope: scope{attributes: p.attr.sub}, inside: true}
	if p.filter, err = parser.parse(); err != nil {
		return "", err
	}
	return parser.text[parser.at:], nil
}

func (p *path) parseSub(rest string) error {
	if rest == "" {
		return nil
	}
	name, ok := strings.CutPrefix(rest, ".")
	if !ok {
		return bad(typeInvalidPath, "the path is malformed")
	}
	if p.sub = p.attr.sub.find(name); p.sub == nil {
		return bad(typeInvalidPath, "the path names a sub-attribute that %s does not have", p.attr.name)
	}
	return nil
}

// cutName cuts the name of an attribute off a path.
func cutName(s string) (name, rest string) {
	for i := range len(s) {
		if !isNameByte(s[i]) {
			return s[:i], s[i:]
		}
	}
	return s, ""
}

// isNameByte reports whether a name of an attribute has the character (RFC 7643, section
// 2.1, and "$ref").
func isNameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '$'
}

func (p *path) readOnly() bool {
	return p.attr != nil && p.attr.readOnly() || p.sub != nil && p.sub.readOnly()
}

// container returns the part of a document in which the path's attribute is; nil if there
// is none and create is false.
func (p *path) container(t *resourceType, d Document, create bool) Document {
	if p.schema == t.core {
		return d
	}
	part, ok := d[p.schema.id].(Document)
	if !ok && create {
		part = Document{}
		d[p.schema.id] = part
	}
	return part
}
