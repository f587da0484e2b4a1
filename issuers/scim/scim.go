// Package scim makes memberships in groups and roles through SCIM 2.0 (RFC 7643, RFC
// 7644). The broker is the client.
package scim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/membership"
)

// Config configures the connection to a SCIM server.
type Config struct {
	Name  string // of the issuer
	URL   string // of the SCIM root: https://crm.acme.test/scim/v2
	HTTP  *http.Client
	Token func() (string, error) // the bearer token; nil: a client certificate is enough
	Match string                 // the attribute of a user that has a member's name: one of Matches

	// Read is where the server lists memberships: one of Reads.
	Read string

	// RemoveByValue selects the dialect of servers that do not know the path
	// members[value eq "…"]: the operation's value lists the members to remove. A server
	// that follows RFC 7644 would remove all members instead.
	RemoveByValue bool

	Ledger *membership.Ledger
	Names  membership.Names
}

// Matches are the attributes by which a user can be found.
var Matches = []string{"userName", "externalId", "emails", "id"}

// Places where servers list memberships.
const (
	ReadGroup  = "group"  // the attribute members of the group
	ReadUser   = "user"   // the attribute groups of the user, for servers with large groups
	ReadFilter = "filter" // a filter on groups, for servers that return neither
)

// Reads are the values of Config.Read.
var Reads = []string{ReadGroup, ReadUser, ReadFilter}

// A Spec is the scim key of an entitlement: exactly one of the fields.
type Spec struct {
	Group   string // a group by its displayName
	GroupID string // a group by its id
	Role    string // a value of the user's roles
}

// Check returns an error unless exactly one field is set.
func (s *Spec) Check() error {
	set := 0
	for _, text := range []string{s.Group, s.GroupID, s.Role} {
		if len(text) > maxName {
			return fmt.Errorf("must be at most %d bytes", maxName)
		}
		if text != "" {
			set++
		}
	}
	if s.GroupID != "" && !isSegment(s.GroupID) {
		return fmt.Errorf("%q is not the id of a group", s.GroupID)
	}
	if set != 1 {
		return fmt.Errorf("write exactly one of group: NAME, group_id: ID and role: NAME")
	}
	return nil
}

// maxName bounds the names of groups, members and roles, in bytes: records show them.
const maxName = 256

// Describe describes the spec for approvers.
func (c *Config) describe(spec any) string {
	s, ok := spec.(*Spec)
	switch {
	case !ok:
		return ""
	case s.Role != "":
		return fmt.Sprintf("role %q at %s", s.Role, c.URL)
	case s.GroupID != "":
		return fmt.Sprintf("member of the group with the id %q at %s", s.GroupID, c.URL)
	}
	return fmt.Sprintf("member of the group %q at %s", s.Group, c.URL)
}

// New returns an issuer. It does not contact the server.
func New(cfg Config) *membership.Issuer {
	cfg.URL = strings.TrimSuffix(cfg.URL, "/")
	where := sha256.Sum256([]byte("scim\n" + cfg.URL))
	return membership.NewIssuer(membership.IssuerConfig{
		Name: cfg.Name, At: hex.EncodeToString(where[:8]), Directory: &server{cfg}, Ledger: cfg.Ledger, Names: cfg.Names, Describe: cfg.describe,
	})
}

// A server is a SCIM server.
type server struct{ cfg Config }

var _ membership.Directory = (*server)(nil)

// Kinds of places.
const (
	kindGroup = "" // the zero value, as most
	kindRole  = "role"
)

// Find implements membership.Directory.
func (s *server) Find(ctx context.Context, spec any, name string) (p membership.Place, err error) {
	of, ok := spec.(*Spec)
	if !ok {
		return p, fmt.Errorf("%w: the entitlement has no group", broker.ErrIssuerRefused)
	}
	user, err := s.findUser(ctx, name)
	if err != nil {
		return p, err
	}
	p.Member, p.MemberName = user.ID, name
	if of.Role != "" {
		p.Kind, p.Group, p.GroupName = kindRole, of.Role, of.Role
		return p, nil
	}
	group, err := s.findGroup(ctx, of)
	if err != nil {
		return p, err
	}
	p.Group, p.GroupName = group.ID, group.DisplayName
	if p.GroupName == "" || len(p.GroupName) > maxName {
		p.GroupName = group.ID
	}
	return p, nil
}

// Contains implements membership.Directory.
func (s *server) Contains(ctx context.Context, p membership.Place) (bool, error) {
	switch {
	case p.Kind == kindRole:
		return s.userHas(ctx, p, "roles")
	case s.cfg.Read == ReadUser:
		return s.userHas(ctx, p, "groups")
	case s.cfg.Read == ReadFilter:
		return s.filterHas(ctx, p)
	}
	return s.groupHas(ctx, p)
}

// Add implements membership.Directory. SCIM does not state whether the member is new.
func (s *server) Add(ctx context.Context, p membership.Place) (bool, error) {
	path, attribute, value := resource(p)
	return true, s.patch(ctx, path, operation{Op: "add", Path: attribute, Value: []reference{{value}}})
}

// Remove implements membership.Directory.
func (s *server) Remove(ctx context.Context, p membership.Place) error {
	path, attribute, value := resource(p)
	op := operation{Op: "remove", Path: fmt.Sprintf("%s[value eq %s]", attribute, quote(value))}
	if s.cfg.RemoveByValue {
		op = operation{Op: "remove", Path: attribute, Value: []reference{{value}}}
	}
	return s.patch(ctx, path, op)
}

// resource returns the path and the attribute that list a member, and the value that
// is the member.
func resource(p membership.Place) (path, attribute, value string) {
	if p.Kind == kindRole {
		return "/Users/" + url.PathEscape(p.Member), "roles", p.Group
	}
	return "/Groups/" + url.PathEscape(p.Group), "members", p.Member
}
