package egress

import "fmt"

// Codes of refusals. They are stable.
const (
	CodeInvalidURL      = "invalid_url"        // the URL has no canonical form
	CodeHost            = "host_not_allowed"   // no rule names the host
	CodeMethod          = "method_not_allowed" // no rule of the host names the method
	CodePath            = "path_not_allowed"   // no rule of the host matches the path
	CodeQuery           = "query_not_allowed"  // a parameter carries a credential, or is not in the rule
	CodeHeader          = "invalid_header"     // a header can't be sent
	CodeWebSocket       = "websocket_not_allowed"
	CodeAddress         = "address_not_allowed" // the host resolves to an address that is not public
	CodePending         = "pending_approval"    // the credential waits for people
	CodeNoCredential    = "no_credential"       // the broker refused the credential, or it does not fit
	CodeUnrecorded      = "unrecorded"          // the broker did not record the call, so it was not made
	CodeRequestTooLarge = "request_too_large"
	CodeAnswerTooLarge  = "answer_too_large"
	CodeTimeout         = "timeout"
	CodeUnreachable     = "unreachable"       // no connection, or no answer
	CodeUnreadable      = "unreadable_answer" // the answer can't be searched for the credential
)

// A Refusal means that a call was not made, or that its answer is withheld. Its texts are
// for a model or a person, and contain no credential.
type Refusal struct {
	Code        string
	What        string // one sentence: what happened
	Next        string // one sentence: what to do
	Entitlement string // empty: no rule matched
	Request     string // of CodePending: its ID, "req_…"
	Err         error  // the cause; may be nil
}

func (r *Refusal) Error() string { return r.What + ": " + r.Next }

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }

func refuse(code, next, format string, args ...any) *Refusal {
	return &Refusal{Code: code, What: fmt.Sprintf(format, args...), Next: next}
}
