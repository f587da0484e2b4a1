package ldap

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/membership"
)

const (
	callTimeout = 10 * time.Second // of one operation, if its context has no earlier deadline
	maxAnswer   = 4 << 20          // bytes that a directory may send over one connection
)

// The library allocates a packet by the length that the server states.
func init() { ber.MaxPacketLengthBytes = maxAnswer }

// A conn is a bound connection for one operation.
type conn struct {
	*ldap.Conn
	cfg *Config
}

// with calls f with a connection of its own. Its errors are faults, refusals and ErrGone.
func (d *directory) with(ctx context.Context, f func(*conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	l, err := d.dial(ctx)
	if err != nil {
		return fault(ctx, err)
	}
	defer func() { _ = l.Close() }() // which has nothing left to send
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	if err := d.bind(l); err != nil {
		return fault(ctx, err)
	}
	err = f(&conn{l, &d.cfg})
	if err != nil && ctx.Err() != nil && !errors.Is(err, membership.ErrGone) {
		return fault(ctx, err)
	}
	return err
}

// dial connects, with TLS as configured.
func (d *directory) dial(ctx context.Context) (*ldap.Conn, error) {
	u, err := url.Parse(d.cfg.URL)
	if err != nil {
		return nil, err
	}
	network, address := "tcp", u.Host
	switch port := map[string]string{"ldap": "389", "ldaps": "636"}[u.Scheme]; {
	case u.Scheme == "ldapi":
		network, address = "unix", u.Path
	case u.Port() == "":
		address = net.JoinHostPort(u.Hostname(), port)
	}
	raw, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	if err := raw.SetDeadline(deadline); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	var transport net.Conn = &bounded{raw, maxAnswer}
	settings := d.cfg.TLS.Clone()
	if settings.ServerName == "" {
		settings.ServerName = u.Hostname()
	}
	if u.Scheme == "ldaps" {
		secured := tls.Client(transport, settings)
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, raw.Close())
		}
		transport = secured
	}
	l := ldap.NewConn(transport, u.Scheme == "ldaps")
	l.Start()
	l.SetTimeout(time.Until(deadline))
	if d.cfg.StartTLS {
		if err := l.StartTLS(settings); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// bounded limits what the server may send.
type bounded struct {
	net.Conn
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the directory sent more than %d bytes: %w", maxAnswer, io.ErrUnexpectedEOF)
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

func (d *directory) bind(l *ldap.Conn) error {
	if d.cfg.BindDN == "" {
		return l.ExternalBind()
	}
	password, err := d.cfg.Password()
	if err != nil {
		return fmt.Errorf("%w: %w", broker.ErrIssuerUnavailable, err)
	}
	// A bind without a password succeeds and authenticates no one (RFC 4513, section 5.1.2).
	if password == "" {
		return fmt.Errorf("%w: the password of the bind DN is empty", broker.ErrIssuerRefused)
	}
	return l.Bind(d.cfg.BindDN, password)
}

// entry reads one entry by its DN.
func (c *conn) entry(dn string, attributes ...string) (*ldap.Entry, error) {
	found, err := c.Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 1, int(callTimeout/time.Second), false, "(objectClass=*)", attributes, nil))
	switch {
	case ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject):
		return nil, refused("the directory has no entry with the DN " + dn + ", or does not show it to the broker")
	case err != nil:
		return nil, fault(context.Background(), err)
	case len(found.Entries) != 1:
		return nil, refused("the directory has no entry with the DN " + dn + ", or does not show it to the broker")
	}
	return found.Entries[0], nil
}

// member finds the only entry with a member's name. The directory compares without case and
// white space, and in its own forms of Unicode (RFC 4518): the name that it found must be the
// member's except for the case, so that no similar name leads to another person.
func (c *conn) member(name, attribute string) (*ldap.Entry, error) {
	attributes := []string{c.cfg.IDAttribute, c.cfg.Match}
	if attribute == memberUID {
		attributes = append(attributes, "uid")
	}
	entries, err := c.search(c.cfg.PeopleBase, c.cfg.Match, ldap.EscapeFilter(name), attributes)
	switch {
	case err != nil:
		return nil, err
	case len(entries) == 0:
		return nil, refused("the directory has no entry with the " + c.cfg.Match + " " + name)
	case len(entries) > 1:
		return nil, refused("the directory has more than one entry with the " + c.cfg.Match + " " + name)
	case !slices.ContainsFunc(entries[0].GetEqualFoldAttributeValues(c.cfg.Match), func(v string) bool { return strings.EqualFold(v, name) }):
		return nil, refused("the directory has no entry with exactly the " + c.cfg.Match + " " + name + ", or does not show the broker this attribute")
	}
	return entries[0], nil
}

// search returns at most two entries below a base whose attribute has a value, which is
// escaped already. A base that the directory does not show is an error, not an empty
// result.
func (c *conn) search(base, attribute, value string, attributes []string) ([]*ldap.Entry, error) {
	found, err := c.Search(ldap.NewSearchRequest(base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 2, int(callTimeout/time.Second), false,
		"("+attribute+"="+value+")", attributes, nil))
	if ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded) && found != nil && len(found.Entries) > 1 {
		return found.Entries, nil
	}
	if err != nil {
		return nil, fault(context.Background(), err)
	}
	return found.Entries, nil
}

// byID finds an entry by its lasting identifier; nil if it no longer exists.
func (c *conn) byID(id string, attributes ...string) (*ldap.Entry, error) {
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) == 0 {
		return nil, fmt.Errorf("%w: the identifier of an entry can't be read", broker.ErrIssuerRefused)
	}
	value := ldap.EscapeFilter(string(raw))
	if !printable(raw) {
		value = escapeAll(raw)
	}
	entries, err := c.search(c.cfg.Base, c.cfg.IDAttribute, value, attributes)
	switch {
	case err != nil:
		return nil, err
	case len(entries) > 1:
		return nil, fmt.Errorf("%w: the directory has several entries with one %s", broker.ErrIssuerRefused, c.cfg.IDAttribute)
	case len(entries) == 0:
		return nil, nil
	}
	return entries[0], nil
}

// find returns the current DN of a group, and the values by which it may list the member:
// the one that was added, and that of today, because entries are renamed.
func (c *conn) find(p membership.Place) (group string, values []string, err error) {
	entry, err := c.byID(p.Group, "1.1") // no attributes (RFC 4511, section 4.5.1.8)
	if err != nil {
		return "", nil, err
	}
	if entry == nil {
		return "", nil, membership.ErrGone
	}
	wanted := "1.1"
	if p.Attribute == memberUID {
		wanted = "uid"
	}
	member, err := c.byID(p.Member, wanted)
	if err != nil {
		return "", nil, err
	}
	values = []string{p.Value}
	if member != nil {
		if value := c.value(member, p.Attribute); value != "" && !slices.Contains(values, value) {
			values = append(values, value)
		}
	}
	return entry.DN, values, nil
}

// value returns the value by which an attribute lists a member.
func (*conn) value(member *ldap.Entry, attribute string) string {
	if attribute == memberUID {
		return member.GetAttributeValue("uid")
	}
	return member.DN
}

// has reports whether an attribute of the entry has the value. The directory compares, so
// a large group costs no more than a small one.
func (c *conn) has(dn, attribute, value string) (bool, error) {
	has, err := c.Compare(dn, attribute, value)
	switch {
	case ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchAttribute):
		return false, nil
	case ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject):
		return false, membership.ErrGone // since find
	}
	return has, fault(context.Background(), err)
}

// identifier returns the lasting identifier of an entry, in hexadecimal: Active Directory
// has binary ones.
func identifier(e *ldap.Entry, attribute string) string {
	return hex.EncodeToString(e.GetRawAttributeValue(attribute))
}

func printable(raw []byte) bool {
	return !slices.ContainsFunc(raw, func(b byte) bool { return b < ' ' || b > '~' })
}

// escapeAll escapes every byte for a filter (RFC 4515, section 3).
func escapeAll(raw []byte) string {
	var s strings.Builder
	for _, b := range raw {
		fmt.Fprintf(&s, `\%02x`, b)
	}
	return s.String()
}

// refused returns a refusal that the requester may read.
func refused(detail string) error {
	return &broker.Refusal{Err: broker.ErrIssuerRefused, Detail: detail}
}

// fault returns an error of the library as one of the broker. It omits the directory's own
// text. A nil error stays nil.
func fault(ctx context.Context, err error) error {
	var refusal *broker.Refusal
	var result *ldap.Error
	switch {
	case err == nil || errors.As(err, &refusal) || errors.Is(err, membership.ErrGone) || errors.Is(err, broker.ErrIssuerUnavailable) || errors.Is(err, broker.ErrIssuerRefused):
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("%w: the directory did not answer in time", broker.ErrIssuerUnavailable)
	case !errors.As(err, &result) || result.ResultCode >= ldap.ErrorNetwork:
		return fmt.Errorf("%w: the directory can't be reached, or its answer can't be read", broker.ErrIssuerUnavailable)
	case slices.Contains([]uint16{ldap.LDAPResultBusy, ldap.LDAPResultUnavailable, ldap.LDAPResultTimeLimitExceeded, ldap.LDAPResultAdminLimitExceeded}, result.ResultCode):
		return fmt.Errorf("%w: the directory answered %s", broker.ErrIssuerUnavailable, resultText(result))
	case result.ResultCode == ldap.LDAPResultObjectClassViolation:
		return fmt.Errorf("%w: the directory answered %s: if the group must have a member, set placeholder", broker.ErrIssuerRefused, resultText(result))
	}
	return fmt.Errorf("%w: the directory answered %s", broker.ErrIssuerRefused, resultText(result))
}

// resultText returns the name of a result code.
func resultText(e *ldap.Error) string {
	if name := ldap.LDAPResultCodeMap[e.ResultCode]; name != "" {
		return fmt.Sprintf("%d, %s", e.ResultCode, name)
	}
	return fmt.Sprint(e.ResultCode)
}
