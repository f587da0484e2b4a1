package mcp

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// The state that a client carries between the rounds of a call has nothing but an expiry
// and a code over it, the caller, the tool and its arguments. A client can therefore not
// use a form for other arguments than those that its user saw, nor for another caller.

// stateLife is how long a user may take to fill in a form.
const stateLife = 15 * time.Minute

const stateLength = 8 + sha256.Size

// newState returns the state for the next round of this call.
func (c *call) newState() string {
	until := c.now.Add(stateLife).Unix()
	state := binary.BigEndian.AppendUint64(nil, uint64(until))
	return base64.RawURLEncoding.EncodeToString(append(state, c.s.stateCode(until, c.who.ID, c.req.Params)...))
}

// stateCode authenticates a state.
func (s *Server) stateCode(until int64, caller string, p *sdk.CallToolParamsRaw) []byte {
	h := hmac.New(sha256.New, s.stateKey)
	text, _ := json.Marshal([]any{"access-broker/mcp/state/v1", until, caller, p.Name, canonical(p.Arguments)})
	h.Write(text)
	return h.Sum(nil)
}

// canonical returns arguments in one form, because a client may write them differently in
// the next round.
func canonical(arguments json.RawMessage) string {
	var value any
	if json.Unmarshal(arguments, &value) != nil {
		return string(arguments)
	}
	text, err := json.Marshal(value)
	if err != nil {
		return string(arguments)
	}
	return string(text)
}

var errState = &jsonrpc.Error{
	Code: jsonrpc.CodeInvalidParams, Message: "requestState is not one of this server for this call, or it has expired; call the tool again without it",
}

// checkState refuses a state that this server did not make for the same call.
func (c *call) checkState() error {
	text := c.req.Params.RequestState
	if text == "" {
		return nil
	}
	state, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(state) != stateLength {
		return errState
	}
	until := int64(binary.BigEndian.Uint64(state))
	if !hmac.Equal(state[8:], c.s.stateCode(until, c.who.ID, c.req.Params)) || c.now.Unix() >= until {
		return errState
	}
	return nil
}
