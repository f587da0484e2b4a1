// Package ldap makes memberships in groups and roles of an LDAP directory (RFC 4511).
package ldap

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/membership"
)

// Config configures the connection to a directory.
type Config struct {
	Name     string // of the issuer
	URL      string // ldaps://ldap.acme.test, ldap://… or ldapi:///run/slapd/ldapi
	StartTLS bool   // before anything else, with ldap://
	TLS      *tls.Config

	BindDN   string                 // empty: SASL EXTERNAL, with the client certificate or over ldapi
	Password func() (string, error) // of BindDN

	Base        string // entries are found below it, by their lasting identifiers
	PeopleBase  string // members are found by their names below it
	Match       string // the attribute that has a member's name, such as uid
	IDAttribute string // the lasting identifier of an entry, such as entryUUID (RFC 4530)

	// Placeholder is the DN that the broker leaves in a group of a class that must have a
	// member, when it removes the last one. Empty: it does not remove the last one.
	Placeholder string

	Ledger *membership.Ledger
	Names  membership.Names
}

// A Spec is the ldap key of an entitlement.
type Spec struct {
	Group     string // the DN of a group or a role
	Role      bool   // it is a role
	Attribute string // that lists the members; empty: as the object class has it
}

// maxName bounds the DNs of groups and the names of members, in bytes: records show them.
const maxName = 256

// Check returns an error for a spec without a DN.
func (s *Spec) Check() error {
	if len(s.Group) > maxName {
		return fmt.Errorf("the DN must be at most %d bytes", maxName)
	}
	if dn, err := ldap.ParseDN(s.Group); err != nil || len(dn.RDNs) == 0 {
		return fmt.Errorf("write the DN of a group or a role, such as group: \"cn=admins,ou=groups,dc=acme,dc=test\"")
	}
	return CheckAttribute(s.Attribute)
}

// CheckAttribute returns an error unless the name is empty or one of an attribute (RFC
// 4512, section 1.4).
func CheckAttribute(name string) error {
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || r != '-' && (r < '0' || r > '9')) {
			return fmt.Errorf("%q is not the name of an attribute", name)
		}
	}
	if len(name) > 64 {
		return fmt.Errorf("the name of an attribute must be at most 64 bytes")
	}
	return nil
}

// CheckDN returns an error unless the text is a DN.
func CheckDN(text string) error {
	if dn, err := ldap.ParseDN(text); err != nil || len(dn.RDNs) == 0 {
		return fmt.Errorf("write a DN, such as dc=acme,dc=test")
	}
	return nil
}

func (c *Config) describe(spec any) string {
	s, ok := spec.(*Spec)
	if !ok {
		return ""
	}
	what := "member of the group"
	if s.Role {
		what = "occupant of the role"
	}
	return fmt.Sprintf("%s %q at %s", what, s.Group, c.URL)
}

// New returns an issuer. It does not contact the directory.
func New(cfg Config) *membership.Issuer {
	cfg.URL = strings.TrimSuffix(cfg.URL, "/")
	where := sha256.Sum256([]byte("ldap\n" + cfg.URL + "\n" + cfg.Base))
	return membership.NewIssuer(membership.IssuerConfig{
		Name: cfg.Name, At: hex.EncodeToString(where[:8]), Directory: &directory{cfg}, Ledger: cfg.Ledger, Names: cfg.Names, Describe: cfg.describe,
	})
}

// A directory is an LDAP directory.
type directory struct{ cfg Config }

var _ membership.Directory = (*directory)(nil)

// Attributes that list members by something else than a DN.
const memberUID = "memberUid" // RFC 2307: by the attribute uid

// classes are the attributes that list the members, by object class in lower case (RFC
// 4519, RFC 2307, and Active Directory).
var classes = map[string]string{
	"groupofnames": "member", "groupofuniquenames": "uniqueMember", "groupofentries": "member", "posixgroup": memberUID,
	"organizationalrole": "roleOccupant", "group": "member", "groupofmembers": "member",
}

// Find implements membership.Directory.
func (d *directory) Find(ctx context.Context, spec any, name string) (p membership.Place, err error) {
	of, ok := spec.(*Spec)
	if !ok {
		return p, fmt.Errorf("%w: the entitlement has no group", broker.ErrIssuerRefused)
	}
	err = d.with(ctx, func(c *conn) error {
		group, err := c.entry(of.Group, d.cfg.IDAttribute, "objectClass")
		if err != nil {
			return err
		}
		if p.Attribute = of.Attribute; p.Attribute == "" {
			p.Attribute = attributeOf(group.GetAttributeValues("objectClass"), of.Role)
		}
		if p.Attribute == "" {
			return refused("the directory has no group of a known class at this DN: the operator has to set the attribute that lists its members")
		}
		member, err := c.member(name, p.Attribute)
		if err != nil {
			return err
		}
		p.Group, p.GroupName = identifier(group, d.cfg.IDAttribute), of.Group
		p.Member, p.MemberName, p.Value = identifier(member, d.cfg.IDAttribute), member.DN, c.value(member, p.Attribute)
		if len(p.MemberName) > maxName {
			p.MemberName = name
		}
		if p.Group == "" || p.Member == "" || p.Value == "" {
			return refused("the directory shows the broker no " + d.cfg.IDAttribute + " of the group or the member, or no " + p.Attribute + " for the member")
		}
		return nil
	})
	return p, err
}

// attributeOf returns the attribute that lists the members of an entry of these object
// classes, or "".
func attributeOf(objectClasses []string, role bool) string {
	for _, class := range objectClasses {
		attribute := classes[strings.ToLower(class)]
		if attribute != "" && role == (attribute == "roleOccupant") {
			return attribute
		}
	}
	return ""
}

// Contains implements membership.Directory.
func (d *directory) Contains(ctx context.Context, p membership.Place) (has bool, err error) {
	err = d.with(ctx, func(c *conn) error {
		group, values, err := c.find(p)
		if err != nil {
			return err
		}
		for _, value := range values {
			if has, err = c.has(group, p.Attribute, value); has || err != nil {
				return err
			}
		}
		return nil
	})
	return has, err
}

// Add implements membership.Directory. An LDAP server refuses a value that exists, so
// adding is a test and a change in one.
func (d *directory) Add(ctx context.Context, p membership.Place) (added bool, err error) {
	err = d.with(ctx, func(c *conn) error {
		group, _, err := c.find(p)
		if err != nil {
			return err
		}
		change := ldap.NewModifyRequest(group, nil)
		change.Add(p.Attribute, []string{p.Value})
		err = c.Modify(change)
		if ldap.IsErrorWithCode(err, ldap.LDAPResultAttributeOrValueExists) {
			return nil
		}
		added = err == nil
		return fault(ctx, err)
	})
	return added, err
}

// Remove implements membership.Directory.
func (d *directory) Remove(ctx context.Context, p membership.Place) error {
	return d.with(ctx, func(c *conn) error {
		group, values, err := c.find(p)
		if err != nil {
			return err
		}
		for _, value := range values {
			if err := c.remove(group, p.Attribute, value, d.cfg.Placeholder); err != nil {
				return fault(ctx, err)
			}
		}
		return nil
	})
}

// remove removes a value, if the group has it. A class that must have a member keeps the
// placeholder.
func (c *conn) remove(group, attribute, value, placeholder string) error {
	change := ldap.NewModifyRequest(group, nil)
	change.Delete(attribute, []string{value})
	err := c.Modify(change)
	if ldap.IsErrorWithCode(err, ldap.LDAPResultObjectClassViolation) && placeholder != "" {
		change.Add(attribute, []string{placeholder})
		err = c.Modify(change)
	}
	if ldap.IsErrorAnyOf(err, ldap.LDAPResultNoSuchAttribute, ldap.LDAPResultNoSuchObject) {
		return nil
	}
	return err
}
