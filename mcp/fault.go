package mcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strings"
	"unicode/utf8"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/api"
)

// A fault is an error for a model: what happened and what to do next.
type fault struct {
	Code api.Code
	What string
	Next string
	// Quotes are texts of other parties about the refusal.
	Quotes []Quote
}

func (f *fault) Error() string {
	return fmt.Sprintf("%s: %s\nNext: %s%s", f.Code, f.What, f.Next, inWords(f.Quotes))
}

// stop is the next step after a refusal that no other call changes.
const stop = "Do not repeat the request. Report to your user that access was refused, with the code."

// next has the next step after each error of the broker. Other errors are final.
var next = map[api.Code]string{
	api.Denied:                "Do not repeat the same request. Call list_access for what you may request, or report to your user that policy refuses this access.",
	api.InvalidRequest:        "Correct the argument that is named, then call again.",
	api.InvalidScope:          "Call list_access, choose scopes of this entitlement exactly as listed, then call again.",
	api.InvalidTTL:            "Choose a ttl within the limit, or omit ttl.",
	api.InvalidParameter:      "Call list_access for the parameters of this entitlement, then call again.",
	api.InvalidDetails:        "Call list_access for the entitlement. Write each element as its authorization_details_types describe, with all fields and no others, then call again.",
	api.JustificationRequired: "Call again with a justification: why you need this access now, for which task. Do not invent one; get the reason from your user.",
	api.TicketRequired:        "Call again with the id of the ticket for this work. Do not invent one; get the id from your user.",
	api.TicketUnfit:           "Use a ticket that fits, or report to your user what the ticket lacks.",
	api.NotPending:            "Call access_status for the present state.",
	api.GrantEnded:            "Call request_access again if the access is still needed.",
	api.Lapsed:                "Call request_access again if the access is still needed.",
	api.LimitReached:          "Wait before the next request, or report the limit to your user.",
	api.MaxActiveReached:      "Call release_access for a credential that you no longer need.",
	api.TooManyPending:        "Wait for your pending requests, or withdraw one with release_access.",
	api.SlowDown:              "Wait a few seconds, then call again.",
	api.Unavailable:           "Wait a minute, then call again. If it keeps failing, report to your user that the broker is not available.",
	api.NotRevocable:          "Nothing more can be done: the credential ends by itself. access_status states when.",
	api.NotFound:              errUnknownHandle.Next,
}

// faultOf returns the error for a model. Errors that the broker does not explain stay in
// the log.
func faultOf(err error) *fault {
	var known *fault
	if errors.As(err, &known) {
		return known
	}
	var answer *api.Error
	if !errors.As(err, &answer) || answer.Code == "" {
		return &fault{Code: api.Unavailable, What: "The broker did not answer.", Next: next[api.Unavailable]}
	}
	f := &fault{Code: answer.Code, What: sentence(answer), Next: next[answer.Code]}
	if f.Next == "" {
		f.Next = stop
	}
	if a := answer.Allowed; a != nil {
		if len(a.Scopes) > 0 {
			f.What += " Policy permits these scopes, each alone: " + strings.Join(a.Scopes, " ") + "."
		}
		if a.MaxTTL > 0 {
			f.What += " Policy permits a ttl of at most " + a.MaxTTL.String() + "."
		}
	}
	for _, reason := range answer.Reasons {
		f.Quotes = quote(f.Quotes, "policy", reason)
	}
	return f
}

// sentence returns the broker's explanation as a sentence.
func sentence(answer *api.Error) string {
	text := quoted(answer.Detail)
	if text == "" {
		text = quoted(answer.Title)
	}
	if text == "" {
		return "The broker refused the call."
	}
	_, first := utf8.DecodeRuneInString(text)
	return strings.ToUpper(text[:first]) + strings.TrimSuffix(text[first:], ".") + "."
}

// failed is the result of a tool that failed.
func failed(err error) *sdk.CallToolResult {
	res := new(sdk.CallToolResult)
	res.SetError(faultOf(err))
	return res
}

// maxMessage bounds an error of the protocol, which may repeat what the client sent.
const maxMessage = 300

// errFailed is the answer to a call that failed by a fault of this program.
var errFailed = &jsonrpc.Error{Code: jsonrpc.CodeInternalError, Message: "the call failed; try again later"}

// panicked logs a panic and returns the error for the client. The value may contain a
// secret, so the log has only its type, unless it is a runtime error.
func (s *Server) panicked(method string, value any) error {
	text := fmt.Sprintf("%T", value)
	if err, ok := value.(runtime.Error); ok {
		text = err.Error()
	}
	s.log.Error("panic", "method", method, "panic", text, "stack", string(debug.Stack()))
	return errFailed
}

// refusal is an error of the protocol as it is sent: bounded, and without what the client
// sent in invisible characters.
func (s *Server) refusal(method string, err error) error {
	var wire *jsonrpc.Error
	if !errors.As(err, &wire) {
		if errors.Is(err, context.Canceled) {
			return err
		}
		level := slog.LevelError
		if strings.HasPrefix(method, "notifications/") {
			level = slog.LevelDebug // the SDK's checks of the session, which clients can fail at will
		}
		s.log.Log(context.Background(), level, "call failed", "method", method, "error", err)
		return errFailed
	}
	bounded := *wire
	bounded.Message = quoted(err.Error())
	if len(bounded.Message) > maxMessage {
		bounded.Message = strings.ToValidUTF8(bounded.Message[:maxMessage], "") + "…"
	}
	return &bounded
}
