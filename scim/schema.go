package scim

import (
	"strings"
)

// A kind is the data type of an attribute (RFC 7643, section 2.3).
type kind string

const (
	kindString    kind = "string"
	kindBoolean   kind = "boolean"
	kindDateTime  kind = "dateTime"
	kindBinary    kind = "binary"
	kindReference kind = "reference"
	kindComplex   kind = "complex"
)

// An attribute is a definition of RFC 7643, section 7.
type attribute struct {
	name       string
	kind       kind
	multi      bool
	required   bool
	exact      bool   // its text is compared with its case
	mutability string // empty: readWrite
	returned   string // empty: default
	uniqueness string // empty: none
	canonical  []string
	references []string
	about      string
	sub        attributes
}

func (a *attribute) readOnly() bool { return a.mutability == "readOnly" }

type attributes []*attribute

// find returns the attribute of a name, in any case (RFC 7643, section 2.1); nil if there
// is none.
func (list attributes) find(name string) *attribute {
	for _, a := range list {
		if strings.EqualFold(a.name, name) {
			return a
		}
	}
	return nil
}

// A schema is a set of attributes with a URN.
type schema struct {
	id, name, about string
	attributes      attributes
}

// A resourceType is a kind of resource, with its endpoint.
type resourceType struct {
	name, endpoint, about string
	core                  *schema
	extensions            []*schema
	root                  attributes // of the core schema and the common ones
}

// The URNs.
const (
	urnUser       = "urn:ietf:params:scim:schemas:core:2.0:User"
	urnGroup      = "urn:ietf:params:scim:schemas:core:2.0:Group"
	urnEnterprise = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"

	urnAccess       = "urn:access-broker:scim:schemas:extension:access:1.0:User" // of the broker
	urnSchema       = "urn:ietf:params:scim:schemas:core:2.0:Schema"
	urnResourceType = "urn:ietf:params:scim:schemas:core:2.0:ResourceType"
	urnProvider     = "urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"

	urnList   = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
	urnSearch = "urn:ietf:params:scim:api:messages:2.0:SearchRequest"
	urnPatch  = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
	urnError  = "urn:ietf:params:scim:api:messages:2.0:Error"
)

// cutURN splits a name such as "urn:…:User:department" into the schema that it names and
// the rest. Without a URN, the schema is the core one. It returns nil for a schema that
// the resource type does not have.
func (t *resourceType) cutURN(name string) (s *schema, rest string) {
	if !hasPrefixFold(name, "urn:") {
		return t.core, name
	}
	for _, s := range append([]*schema{t.core}, t.extensions...) {
		if !hasPrefixFold(name, s.id) {
			continue
		}
		if rest := name[len(s.id):]; rest == "" {
			return s, ""
		} else if rest[0] == ':' {
			return s, rest[1:]
		}
	}
	return nil, name
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}
