package signals

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"accessbroker.internal/broker/signal"
	"accessbroker.internal/internal/strictjson"
)

const (
	caep = "https://schemas.openid.net/secevent/caep/event-type/"
	risc = "https://schemas.openid.net/secevent/risc/event-type/"
	ssf  = "https://schemas.openid.net/secevent/ssf/event-type/"
	sse  = "https://schemas.openid.net/secevent/sse/event-type/" // SSF until 2023
)

const compromise = risc + "credential-compromise"

// kinds are the kinds of the event types that the broker acts upon.
var kinds = map[string]signal.Kind{
	caep + "session-revoked":                    signal.KindSessionRevoked,
	risc + "sessions-revoked":                   signal.KindSessionRevoked, // deprecated (RISC, section 2.11)
	caep + "credential-change":                  signal.KindCredentialChange,
	compromise:                                  signal.KindCredentialChange,
	risc + "account-credential-change-required": signal.KindCredentialChange,
	risc + "account-disabled":                   signal.KindAccountDisabled,
	risc + "account-enabled":                    signal.KindAccountEnabled,
	risc + "account-purged":                     signal.KindAccountPurged,
	ssf + "verification":                        signal.KindVerification,
	sse + "verification":                        signal.KindVerification,
	risc + "verification":                       signal.KindVerification,
	ssf + "stream-updated":                      signal.KindStreamUpdated,
	sse + "stream-updated":                      signal.KindStreamUpdated,
}

// event returns the event of a verified token. With an *unknown, the event changes
// nothing; its other fields are set as far as they are known.
func (t *Transmitter) event(c claimSet, now time.Time) (signal.Event, error) {
	e := signal.Event{Transmitter: t.cfg.Name, ID: c.id, Kind: signal.KindOther, Issued: c.issued, At: c.issued}
	payload, err := c.payload(&e)
	if err != nil {
		return e, err
	}
	if e.Kind == signal.KindOther {
		return e, errIgnored
	}
	if err := readTime(&e, payload, c, now); err != nil {
		return e, err
	}
	if err := readDetails(&e, payload); err != nil {
		return e, err
	}
	raw, alternative := c.subject, payload["subject"]
	if raw == nil {
		raw, alternative = alternative, nil // SSF drafts
	}
	if e.Kind == signal.KindVerification || e.Kind == signal.KindStreamUpdated {
		e.Subject, err = streamOf(raw)
		return e, err
	}
	if e.Subject, err = t.cfg.Subjects.resolve(raw); err != nil {
		return e, err
	}
	if alternative != nil {
		if other, err := t.cfg.Subjects.resolve(alternative); err == nil && other != e.Subject {
			return e, malformed("the token names two subjects")
		}
	}
	return e, narrow(&e)
}

// payload sets the kind of the event and returns its members. Several types are allowed
// only if they are names of one event (SSF, section 4.2.1).
func (c *claimSet) payload(e *signal.Event) (identifier, error) {
	var payload identifier
	for _, name := range slices.Sorted(maps.Keys(c.events)) {
		kind := kinds[name]
		if kind == "" {
			continue
		}
		members, err := strictjson.Object(c.events[name], maxDepth)
		switch {
		case err != nil:
			return nil, malformed("an event of the token %v", err)
		case payload != nil && (kind != e.Kind || !bytes.Equal(payload["subject"], members["subject"])):
			return nil, malformed("the token has several different events")
		case payload == nil:
			e.Kind, payload = kind, members
		}
		if name == compromise {
			e.Reason = "compromise"
		}
	}
	return payload, nil
}

// readTime reads when the event happened: event_timestamp (CAEP, section 2), or toe (RFC
// 8417, section 2.2).
func readTime(e *signal.Event, payload identifier, c claimSet, now time.Time) error {
	raw, ok := payload["event_timestamp"]
	if !ok {
		raw, ok = c.happened, c.happened != nil
	}
	if !ok {
		return nil
	}
	at, ok := numericDate(raw)
	switch {
	case !ok:
		return malformed("the time of the event is not a number of seconds since 1970")
	case at.After(now.Add(leeway)):
		return &Rejection{signal.Future, codeInvalidRequest, "the event is from the future: compare the clocks of the transmitter and the receiver"}
	case at.Before(e.At):
		e.At = at
	}
	return nil
}

// readDetails reads the members that the kind of the event defines.
func readDetails(e *signal.Event, payload identifier) error {
	word := func(name string, allowed ...string) string {
		text, ok := strictjson.Text(payload[name])
		if !ok || !slices.Contains(allowed, text) {
			return ""
		}
		return text
	}
	switch e.Kind {
	case signal.KindAccountDisabled:
		e.Reason = word("reason", "hijacking", "bulk-account")
	case signal.KindCredentialChange:
		e.Reason = cmp.Or(e.Reason, word("change_type", "create", "revoke", "update", "delete"))
		if _, ok := payload["change_type"]; ok && e.Reason == "" {
			return malformed("the change_type of the event is unknown")
		}
	case signal.KindVerification:
		if raw, ok := payload["state"]; ok {
			text, ok := strictjson.Text(raw)
			if !ok || len(text) > maxIdentifier {
				return malformed("the state of the event is not a string of at most %d bytes", maxIdentifier)
			}
			e.State = text
		}
	case signal.KindStreamUpdated:
		if e.Status = word("status", "enabled", "paused", "disabled"); e.Status == "" {
			return malformed("the status of the stream is unknown")
		}
	}
	return nil
}

// streamOf returns the stream that an event is about (SSF, sections 8.1.4.1 and 8.1.5). It
// is empty for transmitters of drafts.
func streamOf(raw json.RawMessage) (signal.Subject, error) {
	if raw == nil {
		return signal.Subject{}, nil
	}
	id, err := parseIdentifier(raw)
	if err != nil {
		return signal.Subject{}, err
	}
	if format, err := id.format(); err != nil || format != "opaque" {
		return signal.Subject{}, malformed("the subject of the event is not the id of a stream")
	}
	text, err := id.text("id")
	return signal.Subject{Stream: text}, err
}

// narrow drops the session of an event about the whole account. Such an event must name
// the account.
func narrow(e *signal.Event) error {
	if e.Kind == signal.KindSessionRevoked {
		return nil
	}
	e.Subject.SID = ""
	if e.Subject == (signal.Subject{}) {
		return errUnknown
	}
	return nil
}
