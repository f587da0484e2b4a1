package signals

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/signal"
	"accessbroker.internal/internal/strictjson"
)

// Subjects map the subject identifiers of a transmitter to accounts of one provider. An
// identifier that maps to no account is unknown, and its events change nothing.
type Subjects struct {
	Provider string            // whose accounts the subjects are
	Issuers  []string          // the iss of subjects of the form iss_sub
	Opaque   string            // what an opaque identifier is: OpaqueSub, OpaqueSession or "": unknown
	Email    string            // how an address leads to an account: EmailSub, EmailAccount or "": not
	Accounts map[string]string // from other identifiers, as text, to the sub of an account
	Tenant   string            // the id of the tenant in complex subjects; "": any
	Critical []string          // members of complex subjects that must not be ignored
}

// The values of Subjects.Opaque and Subjects.Email.
const (
	OpaqueSub     = "sub"
	OpaqueSession = "session"
	EmailSub      = "sub"     // the sub of an account is its address
	EmailAccount  = "account" // the account whose address it is
)

const (
	maxAliases    = 8
	maxIdentifier = 1024 // bytes
)

// An identifier holds the members of a subject identifier (RFC 9493, section 3).
type identifier map[string]json.RawMessage

func parseIdentifier(raw json.RawMessage) (identifier, error) {
	members, err := strictjson.Object(raw, maxDepth)
	if err != nil {
		return nil, malformed("the subject of the event %v", err)
	}
	return members, nil
}

// text returns a member that must be a string of a bounded length.
func (id identifier) text(name string) (string, error) {
	text, ok := strictjson.Text(id[name])
	if !ok || text == "" || len(text) > maxIdentifier {
		return "", malformed("the subject of the event has no %s", name)
	}
	return text, nil
}

// format returns the format of the identifier. Transmitters of RISC drafts call it
// subject_type (RISC, section 4).
func (id identifier) format() (string, error) {
	if _, ok := id["format"]; !ok && id["subject_type"] != nil {
		format, err := id.text("subject_type")
		return strings.ReplaceAll(format, "-", "_"), err
	}
	return id.text("format")
}

// unknown is the error of a subject that is not the transmitter's, or that leads to no
// account. It is no mistake of the transmitter.
type unknown struct{ outcome signal.Outcome }

func (u *unknown) Error() string { return string(u.outcome) }

var (
	errUnknown = &unknown{signal.UnknownSubject}
	errForeign = &unknown{signal.ForeignSubject}
	errIgnored = &unknown{signal.Unsupported}
)

// resolve returns the person or the session that a subject names. The error is a
// *Rejection or an *unknown.
func (s *Subjects) resolve(raw json.RawMessage) (signal.Subject, error) {
	id, err := parseIdentifier(raw)
	if err != nil {
		return signal.Subject{}, err
	}
	format, err := id.format()
	switch {
	case err != nil:
		return signal.Subject{}, err
	case format == "complex":
		return s.complex(id)
	}
	return s.simple(id, format)
}

// simple resolves a simple subject (SSF, section 3.2).
func (s *Subjects) simple(id identifier, format string) (signal.Subject, error) {
	switch format {
	case "iss_sub":
		return s.issSub(id)
	case "email":
		return s.email(id)
	case "opaque":
		return s.opaque(id)
	case "aliases":
		return s.aliases(id)
	}
	// RFC 9493, section 3.2. The identifiers of SSF, section 3.5, name no account.
	member := map[string]string{"account": "uri", "phone_number": "phone_number", "did": "url", "uri": "uri"}[format]
	if member == "" {
		return signal.Subject{}, errUnknown
	}
	text, err := id.text(member)
	if err != nil {
		return signal.Subject{}, err
	}
	return s.listed(text)
}

func (s *Subjects) listed(text string) (signal.Subject, error) {
	if sub, ok := s.Accounts[text]; ok {
		return s.account(sub)
	}
	return signal.Subject{}, errUnknown
}

// account returns the account of a sub. A malformed sub is unknown, because no account
// has it.
func (s *Subjects) account(sub string) (signal.Subject, error) {
	name := s.Provider + "/" + sub
	if _, _, err := broker.ParsePerson(name); err != nil {
		return signal.Subject{}, errUnknown
	}
	return signal.Subject{Account: name}, nil
}

func (s *Subjects) issSub(id identifier) (signal.Subject, error) {
	issuer, err := id.text("iss")
	if err != nil {
		return signal.Subject{}, err
	}
	sub, err := id.text("sub")
	switch {
	case err != nil:
		return signal.Subject{}, err
	case !slices.Contains(s.Issuers, issuer):
		return signal.Subject{}, errForeign
	}
	return s.account(sub)
}

func (s *Subjects) email(id identifier) (signal.Subject, error) {
	address, err := id.text("email")
	if err != nil {
		return signal.Subject{}, err
	}
	switch subject, err := s.listed(address); {
	case err == nil:
		return subject, nil
	case s.Email == EmailSub:
		return s.account(address)
	case s.Email == EmailAccount:
		return signal.Subject{Email: address}, nil
	}
	return signal.Subject{}, errUnknown
}

func (s *Subjects) opaque(id identifier) (signal.Subject, error) {
	text, err := id.text("id")
	if err != nil {
		return signal.Subject{}, err
	}
	switch subject, err := s.listed(text); {
	case err == nil:
		return subject, nil
	case s.Opaque == OpaqueSub:
		return s.account(text)
	case s.Opaque == OpaqueSession && len(text) <= maxID:
		return signal.Subject{SID: text}, nil
	}
	return signal.Subject{}, errUnknown
}

// aliases resolves identifiers of one person (RFC 9493, section 3.2.8). Those that lead
// to accounts must lead to one.
func (s *Subjects) aliases(id identifier) (found signal.Subject, err error) {
	list, ok := strictjson.Elements(id["identifiers"])
	if !ok || len(list) == 0 || len(list) > maxAliases {
		return found, malformed("the subject of the event has no list of 1 to %d identifiers", maxAliases)
	}
	result := error(errUnknown)
	for _, raw := range list {
		one, err := parseIdentifier(raw)
		if err != nil {
			return found, err
		}
		format, err := one.format()
		if err != nil || format == "aliases" || format == "complex" {
			return found, malformed("an alias of the subject is not a simple identifier")
		}
		subject, err := s.simple(one, format)
		if rejection := (*Rejection)(nil); errors.As(err, &rejection) {
			return found, rejection
		}
		switch {
		case err == nil && result == nil && subject != found:
			return signal.Subject{}, malformed("the aliases of the subject name several people")
		case err == nil:
			found, result = subject, nil
		case result != nil && err == error(errForeign):
			result = err
		}
	}
	return found, result
}

// complex resolves a complex subject (SSF, section 3.3): its user, its session, or both.
// Of the other members only the tenant can be checked. A device only narrows the
// sessions that are meant, so that all sessions of the user end.
func (s *Subjects) complex(id identifier) (signal.Subject, error) {
	known := []string{"format", "user", "session"}
	if s.Tenant != "" {
		known = append(known, "tenant")
	}
	for _, member := range s.Critical {
		if _, present := id[member]; present && !slices.Contains(known, member) {
			return signal.Subject{}, errIgnored // SSF, section 3.6
		}
	}
	if err := s.checkTenant(id); err != nil {
		return signal.Subject{}, err
	}
	var subject signal.Subject
	if raw, ok := id["user"]; ok {
		user, err := parseIdentifier(raw)
		if err != nil {
			return signal.Subject{}, err
		}
		format, err := user.format()
		if err != nil || format == "complex" {
			return signal.Subject{}, malformed("the user of the subject is not a simple identifier")
		}
		named := *s
		if named.Opaque == OpaqueSession {
			named.Opaque = "" // an opaque user is not a session
		}
		if subject, err = named.simple(user, format); err != nil {
			return signal.Subject{}, err
		}
	}
	if raw, ok := id["session"]; ok {
		session, err := parseIdentifier(raw)
		if err != nil {
			return signal.Subject{}, err
		}
		if format, err := session.format(); err == nil && format == "opaque" {
			if subject.SID, err = session.text("id"); err != nil || len(subject.SID) > maxID {
				return signal.Subject{}, malformed("the session of the subject has no id of at most %d bytes", maxID)
			}
		}
	}
	if subject == (signal.Subject{}) {
		return subject, errUnknown
	}
	return subject, nil
}

// checkTenant returns an error if the subject belongs to another tenant of the
// transmitter.
func (s *Subjects) checkTenant(id identifier) error {
	raw, ok := id["tenant"]
	if !ok || s.Tenant == "" {
		return nil
	}
	tenant, err := parseIdentifier(raw)
	if err != nil {
		return err
	}
	for _, name := range []string{"id", "sub", "uri"} {
		if text, ok := strictjson.Text(tenant[name]); ok && text == s.Tenant {
			return nil
		}
	}
	return errForeign
}
