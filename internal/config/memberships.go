package config

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/membership"
	"accessbroker.internal/internal/outbound"
	"accessbroker.internal/issuers/ldap"
	"accessbroker.internal/issuers/scim"
)

// The issuers of memberships, and their entitlements.

type scimIssuerFile struct {
	URL           string       `yaml:"url"`
	TokenFile     string       `yaml:"token_file"`
	Cert          string       `yaml:"cert"`
	Key           string       `yaml:"key"`
	CAFile        string       `yaml:"ca_file"`
	AllowPrivate  bool         `yaml:"allow_private"`
	Match         string       `yaml:"match"`
	ReadMembers   string       `yaml:"read_members"`
	RemoveMembers string       `yaml:"remove_members"`
	Members       *membersFile `yaml:"members"`
	CompareEvery  duration     `yaml:"compare_every"`
}

type ldapIssuerFile struct {
	URL          string        `yaml:"url"`
	StartTLS     bool          `yaml:"start_tls"`
	Cert         string        `yaml:"cert"`
	Key          string        `yaml:"key"`
	CAFile       string        `yaml:"ca_file"`
	Bind         *ldapBindFile `yaml:"bind"`
	Base         string        `yaml:"base"`
	PeopleBase   string        `yaml:"people_base"`
	Match        string        `yaml:"match"`
	IDAttribute  string        `yaml:"id_attribute"`
	Placeholder  string        `yaml:"placeholder"`
	Members      *membersFile  `yaml:"members"`
	CompareEvery duration      `yaml:"compare_every"`
}

type ldapBindFile struct {
	DN           string `yaml:"dn"`
	PasswordFile string `yaml:"password_file"`
	External     bool   `yaml:"external"`
}

// membersFile maps identities to the names of members.
type membersFile struct {
	People   map[string]string `yaml:"people"`   // by provider: sub or email
	Accounts map[string]string `yaml:"accounts"` // by SPIFFE ID or person
}

// scimSpecFile is the scim key of an entitlement.
type scimSpecFile struct {
	Group   string `yaml:"group"`
	GroupID string `yaml:"group_id"`
	Role    string `yaml:"role"`
}

// ldapSpecFile is the ldap key of an entitlement.
type ldapSpecFile struct {
	Group     string `yaml:"group"`
	Role      string `yaml:"role"`
	Attribute string `yaml:"attribute"`
}

// A SCIMIssuer makes memberships by SCIM.
type SCIMIssuer struct {
	URL                          string
	TokenFile, Cert, Key, CAFile string
	AllowPrivate, RemoveByValue  bool
	Match, Read                  string
	Names                        membership.Names
	CompareEvery                 time.Duration
}

// An LDAPIssuer makes memberships in an LDAP directory. Without BindDN, the broker binds
// with SASL EXTERNAL.
type LDAPIssuer struct {
	URL                                  string
	StartTLS                             bool
	Cert, Key, CAFile                    string
	BindDN, PasswordFile                 string
	Base, PeopleBase, Match, IDAttribute string
	Placeholder                          string
	Names                                membership.Names
	CompareEvery                         time.Duration
}

const (
	defaultCompareEvery  = 5 * time.Minute
	shortestCompareEvery = 10 * time.Second
)

func (c *checker) scimIssuer(key string, f *scimIssuerFile) *SCIMIssuer {
	s := &SCIMIssuer{
		URL: f.URL, TokenFile: c.path(f.TokenFile), Cert: c.path(f.Cert), Key: c.path(f.Key), CAFile: c.path(f.CAFile), AllowPrivate: f.AllowPrivate,
		Match: cmp.Or(f.Match, "userName"), Read: cmp.Or(f.ReadMembers, scim.ReadGroup), RemoveByValue: f.RemoveMembers == "value",
		Names: c.members(key+"/members", f.Members), CompareEvery: c.compareEvery(key, f.CompareEvery),
	}
	if err := outbound.CheckURL(f.URL, f.AllowPrivate); err != nil || strings.Contains(f.URL, "?") {
		c.report(key+"/url", "write the https URL of the SCIM server's root without a query, such as https://crm.acme.test/scim/v2; http works only for this machine, with allow_private")
	}
	if (s.TokenFile == "") == (s.Cert == "") {
		c.report(key, "write one way to log in: token_file: FILE, or cert: FILE and key: FILE")
	}
	c.clientCert(key, f.Cert, f.Key)
	if !slices.Contains(scim.Matches, s.Match) {
		c.report(key+"/match", "choose the attribute that has a member's name: %s", strings.Join(scim.Matches, ", "))
	}
	if !slices.Contains(scim.Reads, s.Read) {
		c.report(key+"/read_members", "choose where the server lists memberships: %s", strings.Join(scim.Reads, ", "))
	}
	if !slices.Contains([]string{"", "path", "value"}, f.RemoveMembers) {
		c.report(key+"/remove_members", "choose path (RFC 7644), or value for a server that does not know the path members[value eq \"…\"]")
	}
	return s
}

func (c *checker) ldapIssuer(key string, f *ldapIssuerFile) *LDAPIssuer {
	l := &LDAPIssuer{
		URL: f.URL, StartTLS: f.StartTLS, Cert: c.path(f.Cert), Key: c.path(f.Key), CAFile: c.path(f.CAFile),
		Base: f.Base, PeopleBase: cmp.Or(f.PeopleBase, f.Base), Match: cmp.Or(f.Match, "uid"), IDAttribute: cmp.Or(f.IDAttribute, "entryUUID"), Placeholder: f.Placeholder,
		Names: c.members(key+"/members", f.Members), CompareEvery: c.compareEvery(key, f.CompareEvery),
	}
	c.ldapURL(key, f)
	c.clientCert(key, f.Cert, f.Key)
	for at, dn := range map[string]string{"base": l.Base, "people_base": l.PeopleBase, "placeholder": l.Placeholder} {
		if err := ldap.CheckDN(dn); err != nil && (at == "base" || dn != "" && dn != l.Base) {
			c.report(key+"/"+at, "%v", err)
		}
	}
	for at, attribute := range map[string]string{"match": l.Match, "id_attribute": l.IDAttribute} {
		if err := ldap.CheckAttribute(attribute); err != nil {
			c.report(key+"/"+at, "%v", err)
		}
	}
	b := f.Bind
	switch {
	case b == nil || b.External == (b.DN != "") || (b.DN == "") != (b.PasswordFile == ""):
		c.report(key+"/bind", "write how the broker logs in: {dn: DN, password_file: FILE}, or {external: true} with a client certificate or over ldapi")
	case b.External && f.Cert == "" && !strings.HasPrefix(f.URL, "ldapi:"):
		c.report(key+"/bind/external", "needs the client certificate: write cert and key")
	default:
		l.BindDN, l.PasswordFile = b.DN, c.path(b.PasswordFile)
	}
	return l
}

// ldapURL reports URLs over which a password would be readable.
func (c *checker) ldapURL(key string, f *ldapIssuerFile) {
	u, err := url.Parse(f.URL)
	loopback := err == nil && slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, u.Hostname())
	switch {
	case err == nil && u.Scheme == "ldapi" && u.Host == "" && strings.HasPrefix(u.Path, "/") && !f.StartTLS:
	case err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		c.report(key+"/url", "write the directory's URL, such as ldaps://ldap.acme.test")
	case u.Scheme == "ldaps" && !f.StartTLS:
	case u.Scheme == "ldap" && (f.StartTLS || loopback):
	case u.Scheme == "ldaps":
		c.report(key+"/start_tls", "ldaps has TLS from the start: remove this key, or write ldap:// in url")
	default:
		c.report(key+"/url", "use ldaps://, or ldap:// with start_tls: true; ldap:// without TLS works only for this machine")
	}
}

func (c *checker) clientCert(key, cert, private string) {
	if (cert == "") != (private == "") {
		c.report(key+"/cert", "a client certificate needs both cert: FILE and key: FILE")
	}
}

func (c *checker) compareEvery(key string, d duration) time.Duration {
	every := cmp.Or(time.Duration(d), defaultCompareEvery)
	if every < shortestCompareEvery {
		c.report(key+"/compare_every", "must be at least %s", broker.FormatDuration(shortestCompareEvery))
	}
	return every
}

// members reads how identities map to the names of members.
func (c *checker) members(key string, f *membersFile) membership.Names {
	if f == nil || len(f.People)+len(f.Accounts) == 0 {
		c.report(key, "write who is which member: people: {PROVIDER: sub}, accounts: {\"spiffe://acme.test/agent/triage\": svc-triage}")
		return membership.Names{}
	}
	n := membership.Names{Accounts: f.Accounts, People: map[string]membership.Source{}}
	for _, provider := range slices.Sorted(maps.Keys(f.People)) {
		source, at := membership.Source(f.People[provider]), key+"/people/"+provider
		if source != membership.FromSubject && source != membership.FromEmail {
			c.report(at, "choose sub, the person's subject at the provider, or email, the address that the provider vouches for")
		}
		if _, known := c.d.file.Attest.People[provider]; !known {
			c.report(at, "there is no provider %q: configure it in attest.people", provider)
		}
		n.People[provider] = source
	}
	for _, id := range slices.Sorted(maps.Keys(f.Accounts)) {
		at := key + "/accounts/" + id
		_, _, person := broker.ParsePerson(id)
		_, _, workload := broker.ParseWorkloadID(id)
		if person != nil && workload != nil {
			c.report(at, "write a SPIFFE ID, or a person such as login/ana")
		}
		if name := f.Accounts[id]; name == "" || len(name) > 256 {
			c.report(at, "write the member's name of 1 to 256 bytes")
		}
	}
	return n
}

// membershipSpec compiles an entitlement of a group.
func (c *checker) membershipSpec(key string, issuer Issuer, f entitlementFile, e *broker.Entitlement, effect *audit.Object) {
	e.Revocation, e.Persists = broker.RevokedImmediate, true
	if len(e.Scopes) > 0 {
		c.report(key+"/scopes", "a membership has no scopes: write one entitlement for each group")
	}
	if len(e.Parameters) > 0 {
		c.report(key+"/parameters", "a membership has no parameters: write one entitlement for each group")
	}
	if issuer.SCIM != nil {
		spec := &scim.Spec{}
		if f.SCIM != nil {
			*spec = scim.Spec{Group: f.SCIM.Group, GroupID: f.SCIM.GroupID, Role: f.SCIM.Role}
		}
		if err := spec.Check(); err != nil {
			c.report(key+"/scim", "%v", err)
		}
		e.Spec = spec
		effect.String("kind", "scim").String("url", issuer.SCIM.URL).String("group", spec.Group).String("group_id", spec.GroupID).String("role", spec.Role)
		return
	}
	spec := &ldap.Spec{}
	if f.LDAP != nil {
		*spec = ldap.Spec{Group: cmp.Or(f.LDAP.Group, f.LDAP.Role), Role: f.LDAP.Role != "", Attribute: f.LDAP.Attribute}
	}
	err := spec.Check()
	if f.LDAP != nil && f.LDAP.Group != "" && f.LDAP.Role != "" {
		err = fmt.Errorf("write either group or role")
	}
	if err != nil {
		c.report(key+"/ldap", "%v", err)
	}
	e.Spec = spec
	effect.String("kind", "ldap").String("url", issuer.LDAP.URL).String("group", spec.Group).String("attribute", spec.Attribute)
	if spec.Role {
		effect.String("role", "yes")
	}
}
