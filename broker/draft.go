package broker

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// MaxDuration is the longest duration of a request, even if policy allows more.
const MaxDuration = 30 * 24 * time.Hour

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// checkForm refuses a malformed ask. It does not use the catalogue.
func (a *Ask) checkForm() error {
	switch {
	case a.Entitlement == "":
		return refuse(ErrInvalidRequest, "name the entitlement")
	case !nameForm.MatchString(a.Entitlement):
		return refuse(ErrInvalidRequest, "the name of the entitlement is malformed")
	case len(a.Scopes) > MaxScopes:
		return refuse(ErrInvalidScope, fmt.Sprintf("at most %d scopes", MaxScopes))
	case a.TTL < 0 || a.TTL%time.Second != 0:
		return refuse(ErrInvalidTTL, "ttl must be a positive number of whole seconds")
	case a.Duration < 0 || a.Duration%time.Second != 0 || a.Duration > MaxDuration:
		return refuse(ErrInvalidTTL, fmt.Sprintf("duration must be a positive number of whole seconds, at most %s", FormatDuration(MaxDuration)))
	case a.WaitAtMost < 0 || a.WaitAtMost%time.Second != 0:
		return refuse(ErrInvalidRequest, "the time to wait for approval must be a positive number of whole seconds")
	case !a.NotBefore.IsZero() && a.NotBefore.Nanosecond() != 0:
		return refuse(ErrInvalidTTL, "not_before must be a time in whole seconds")
	case len(a.Parameters) > MaxParameters:
		return refuse(ErrInvalidParameter, fmt.Sprintf("at most %d parameters", MaxParameters))
	}
	size := 0
	for _, value := range a.Parameters {
		size += len(value)
	}
	if size > MaxAllParameters {
		return refuse(ErrInvalidParameter, fmt.Sprintf("the parameters are longer than %d bytes in total", MaxAllParameters))
	}
	for _, s := range a.Scopes {
		if s == "" || len(s) > MaxScopeLength || strings.IndexFunc(s, notScopeChar) >= 0 {
			return refuse(ErrInvalidScope, fmt.Sprintf("a scope must be 1 to %d printable ASCII characters without space, quote or backslash", MaxScopeLength))
		}
	}
	if err := CheckText(ErrInvalidRequest, "justification", a.Justification, MaxJustification); err != nil {
		return err
	}
	if err := CheckLine(ErrInvalidRequest, "ticket", a.Ticket, MaxTicket); err != nil {
		return err
	}
	return CheckLine(ErrInvalidMessage, "binding_message", a.Message, MaxMessage)
}

// notScopeChar reports whether RFC 6749, section 3.3, forbids the character in
// a scope token.
func notScopeChar(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }

// CheckText bounds a free text. It refuses control characters, because people
// read the text in terminals too.
func CheckText(sentinel error, field, s string, most int) error {
	switch {
	case len(s) > most:
		return refuse(sentinel, fmt.Sprintf("%s is longer than %d bytes", field, most))
	case !utf8.ValidString(s):
		return refuse(sentinel, field+" is not valid UTF-8")
	case strings.IndexFunc(s, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }) >= 0:
		return refuse(sentinel, field+" contains control characters")
	case strings.IndexFunc(s, reorders) >= 0:
		return refuse(sentinel, field+" contains characters that change the direction of text")
	}
	return nil
}

// CheckLine is CheckText for a text that is shown among other lines. A line break
// could fake another line.
func CheckLine(sentinel error, field, s string, most int) error {
	if strings.ContainsAny(s, "\n\t\u2028\u2029") {
		return refuse(sentinel, field+" must be a single line")
	}
	return CheckText(sentinel, field, s, most)
}

// reorders reports whether a character is an explicit directional format (UAX
// #9): with it, a text is displayed in another order than it is stored. Right-
// to-left letters do not need them.
func reorders(r rune) bool { return '\u202a' <= r && r <= '\u202e' || '\u2066' <= r && r <= '\u2069' }

// clockSlack is how far a requester's clock may be behind ours.
const clockSlack = 5 * time.Minute

// newRequest turns an ask into an undecided request, or refuses an ask that
// does not fit the entitlement.
func (e *Entitlement) newRequest(caller *Caller, a *Ask) (r Request, err error) {
	if a.Token && (e.Audience == "" || a.Resource != "" && a.Resource != e.Audience) {
		return r, refuse(ErrInvalidTarget, "its credentials are not tokens, or not for this resource")
	}
	scopes, err := e.scopes(a.Scopes)
	if err != nil {
		return r, err
	}
	if ahead := a.NotBefore.Sub(caller.At); !a.NotBefore.IsZero() && (ahead > MaxDuration || ahead < -clockSlack) {
		return r, refuse(ErrInvalidTTL, fmt.Sprintf("not_before must be now, or at most %s ahead", FormatDuration(MaxDuration)))
	}
	if err := e.checkParameters(a.Parameters); err != nil {
		return r, err
	}
	details, err := e.CheckDetails(a.Details)
	if err != nil {
		return r, err
	}
	if err := caller.checkBinding(e.Binding); err != nil {
		return r, err
	}
	if a.TTL != 0 && a.TTL < e.MinTTL {
		return r, refuse(ErrInvalidTTL, fmt.Sprintf("ttl is shorter than the issuer's minimum of %s", FormatDuration(e.MinTTL)))
	}
	return Request{
		Requester:     caller.Subject,
		Entitlement:   e.Name,
		Effect:        e.Effect,
		Scopes:        scopes,
		TTL:           min(cmp.Or(a.TTL, e.DefaultTTL), e.MaxTTL),
		TTLAsked:      a.TTL != 0,
		Duration:      cmp.Or(a.Duration, e.CollectWithin),
		Justification: strings.TrimSpace(a.Justification),
		Ticket:        strings.TrimSpace(a.Ticket),
		Message:       strings.TrimSpace(a.Message),
		Parameters:    maps.Clone(a.Parameters),
		Details:       details,
		SourceIP:      a.SourceIP,
		BreakGlass:    a.BreakGlass,
		NotBefore:     a.NotBefore.UTC(),
		Extends:       a.Extends,
		KeyThumbprint: caller.Key,
		Created:       caller.At,
	}, nil
}

// scopes returns the requested scopes sorted, or the default scopes. An
// entitlement with scopes is never requested without any: the empty set
// satisfies every containsAll in a policy.
func (e *Entitlement) scopes(asked []string) ([]string, error) {
	if len(asked) == 0 {
		asked = e.DefaultScopes
	}
	if len(asked) == 0 && len(e.Scopes) > 0 {
		return nil, refuse(ErrInvalidScope, "name at least one scope of: "+strings.Join(e.Scopes, " "))
	}
	sorted := slices.Clone(asked)
	slices.Sort(sorted)
	for i, s := range sorted {
		if i > 0 && sorted[i-1] == s {
			return nil, refuse(ErrInvalidScope, "a scope is repeated: "+s)
		}
		if _, ok := slices.BinarySearch(e.Scopes, s); !ok {
			return nil, refuse(ErrInvalidScope, fmt.Sprintf("there is no scope %q; the scopes are: %s", s, strings.Join(e.Scopes, " ")))
		}
	}
	return sorted, nil
}

func (e *Entitlement) checkParameters(given map[string]string) error {
	if len(e.Parameters) == 0 && len(given) == 0 {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		p, ok := e.Parameters[name]
		value := given[name]
		switch {
		case !ok:
			return refuse(ErrInvalidParameter, "there is no parameter of that name; the parameters are: "+cmp.Or(strings.Join(slices.Sorted(maps.Keys(e.Parameters)), ", "), "none"))
		case len(value) > cmp.Or(p.MaxLength, MaxParameter):
			return refuse(ErrInvalidParameter, fmt.Sprintf("%s is longer than %d bytes", name, cmp.Or(p.MaxLength, MaxParameter)))
		case !utf8.ValidString(value) || strings.ContainsFunc(value, func(r rune) bool { return unicode.IsControl(r) && (r != '\n' || !p.Lines) }):
			return refuse(ErrInvalidParameter, name+" is not plain text")
		case strings.ContainsFunc(value, reorders):
			return refuse(ErrInvalidParameter, name+" contains characters that change the direction of text")
		case p.Pattern != nil && !p.Pattern.MatchString(value):
			return refuse(ErrInvalidParameter, fmt.Sprintf("%s does not match %s", name, p.Pattern))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.Parameters)) {
		p := e.Parameters[name]
		if _, ok := given[name]; p.Required && !ok {
			return refuse(ErrInvalidParameter, strings.TrimSuffix(name+" is required: "+p.Description, ": "))
		}
	}
	return nil
}

// query returns the query that policy evaluates for the request.
func (r *Request) query(who Identity, e *Entitlement) Query {
	return Query{
		Principal:     who,
		Action:        ActionRequest,
		Entitlement:   e,
		Scopes:        r.Scopes,
		TTL:           r.TTL,
		Duration:      r.Duration,
		Justification: r.Justification,
		Ticket:        r.Ticket,
		Parameters:    r.Parameters,
		Details:       r.Details,
		SourceIP:      r.SourceIP,
		BreakGlass:    r.BreakGlass,
	}
}

// applyObligations applies a permit's obligations to the request. Values that
// the requester left open are cut to the allowed maximum; values that the
// requester named are refused if they exceed it.
func (r *Request) applyObligations(o Obligations, asked Ask, e *Entitlement) error {
	most := e.MaxTTL
	if o.MaxTTL > 0 {
		most = min(most, o.MaxTTL)
	}
	switch {
	case asked.TTL > most:
		return &Refusal{Err: ErrInvalidTTL, Detail: fmt.Sprintf("ttl is at most %s", FormatDuration(most)), Allowed: &Allowed{MaxTTL: most}}
	case most < e.MinTTL:
		return refuse(ErrInvalidTTL, "policy allows less than the issuer's minimum")
	case o.MaxDuration > 0 && asked.Duration > o.MaxDuration:
		return refuse(ErrInvalidTTL, fmt.Sprintf("duration is at most %s", FormatDuration(o.MaxDuration)))
	case o.Justification && r.Justification == "":
		return refuse(ErrJustificationRequired, "state the reason in justification: policy requires it")
	}
	r.TTL = min(r.TTL, most)
	if o.MaxDuration > 0 {
		r.Duration = min(r.Duration, o.MaxDuration)
	}
	return checkTicket(o.Tickets, r.Ticket)
}

// checkTicket matches the ticket against every pattern that policy requires.
// The patterns compiled when policy was loaded.
func checkTicket(patterns []string, ticket string) error {
	for _, p := range patterns {
		re, err := regexp.Compile("^(?:" + p + ")$")
		if err != nil {
			return fmt.Errorf("compiling a ticket pattern: %w", err)
		}
		if !re.MatchString(ticket) {
			return refuse(ErrTicketRequired, "name the ticket in ticket, in the form "+p)
		}
	}
	return nil
}

// FormatDuration formats a duration for people, as api.Duration does: "15m"
// instead of time.Duration's "15m0s".
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
