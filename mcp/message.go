package mcp

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"accessbroker.internal/internal/strictjson"
)

// maxDepth limits the nesting of a message.
const maxDepth = 32

// Codes of JSON-RPC errors. The last one is of MCP 2026-07-28, basic, "Error Codes".
const (
	codeParse          = -32700
	codeInvalidRequest = -32600
	codeHeaderMismatch = -32020
)

// stateless is the first revision without sessions, whose headers repeat parts of the
// body. Revisions are dates, which compare as texts.
const stateless = "2026-07-28"

// A Message is what a gate reads of a JSON-RPC request or notification.
type Message struct {
	ID     json.RawMessage // nil for a notification
	Method string
	Name   string // params.name, or params.uri of resources/read

	version string // of _meta
	streams bool   // the answer may have notifications before the result
	named   bool   // the method has a name
}

// A messageError is a refusal of a message before it reaches a tool.
type messageError struct {
	code int
	id   json.RawMessage
	text string
}

func (e *messageError) Error() string { return e.text }

// readMessage parses the body of a call strictly: a proxy in front, which may decide by
// the message, must not read another one.
func readMessage(body []byte) (*Message, *messageError) {
	members, err := strictjson.Object(body, maxDepth)
	switch {
	case errors.Is(err, strictjson.ErrNotObject):
		return nil, &messageError{code: codeInvalidRequest, text: "send one JSON-RPC message: batches are not part of this protocol"}
	case err != nil:
		return nil, &messageError{code: codeParse, text: "the message " + err.Error()}
	}
	m := &Message{ID: members["id"]}
	invalid := func(text string) (*Message, *messageError) {
		return nil, &messageError{codeInvalidRequest, m.ID, text}
	}
	if m.ID != nil && m.ID[0] != '"' && (m.ID[0] < '0' || m.ID[0] > '9') && m.ID[0] != '-' {
		m.ID = nil
		return invalid("the id is not a string or a number")
	}
	version, _ := strictjson.Text(members["jsonrpc"])
	var isText bool
	if m.Method, isText = strictjson.Text(members["method"]); version != "2.0" || !isText || m.Method == "" {
		return invalid("the message is not a JSON-RPC 2.0 request or notification")
	}
	if members["params"] == nil {
		return m, nil
	}
	params, err := strictjson.Object(members["params"], maxDepth)
	if err != nil {
		return invalid("params is not an object")
	}
	return m, m.readParams(params)
}

// nameOf are the methods whose Mcp-Name is a member of params.
var nameOf = map[string]string{
	"tools/call": "name", "prompts/get": "name", "resources/read": "uri",
	"tasks/get": "taskId", "tasks/update": "taskId", "tasks/cancel": "taskId",
}

func (m *Message) readParams(params map[string]json.RawMessage) *messageError {
	if member := nameOf[m.Method]; member != "" {
		if m.Name, m.named = strictjson.Text(params[member]); !m.named {
			return &messageError{codeInvalidRequest, m.ID, "params." + member + " is not a string"}
		}
	}
	if params["_meta"] == nil {
		return nil
	}
	meta, err := strictjson.Object(params["_meta"], maxDepth)
	if err != nil {
		return &messageError{codeInvalidRequest, m.ID, "params._meta is not an object"}
	}
	m.version, _ = strictjson.Text(meta["io.modelcontextprotocol/protocolVersion"])
	m.streams = meta["progressToken"] != nil || meta["io.modelcontextprotocol/logLevel"] != nil
	return nil
}

// Headers that repeat parts of the body.
const (
	versionHeader = "Mcp-Protocol-Version"
	methodHeader  = "Mcp-Method"
	nameHeader    = "Mcp-Name"
)

// checkHeaders compares the headers with the body (MCP 2026-07-28, Streamable HTTP,
// "Server Validation"). Clients of earlier revisions need not send them; if they do,
// the headers must be true.
func (m *Message) checkHeaders(h http.Header) *messageError {
	version, err := single(h, versionHeader)
	if err != nil {
		return m.mismatch(err)
	}
	if m.version != "" && m.version != version { // the SDK refuses a missing one
		return m.mismatch(fmt.Errorf("the header %s and the protocol version in params._meta differ", versionHeader))
	}
	// Notifications have no required headers. In earlier revisions, calls of tools may log.
	required := version >= stateless && m.ID != nil
	m.streams = m.streams || version < stateless && m.Method == "tools/call"
	for _, one := range []struct {
		header, body string
		required     bool
	}{{methodHeader, m.Method, required}, {nameHeader, m.Name, required && m.named && !strings.HasPrefix(m.Method, "tasks/")}} {
		value, err := single(h, one.header)
		if err == nil {
			value, err = decodeHeader(one.header, value)
		}
		switch {
		case err != nil:
			return m.mismatch(err)
		case len(h.Values(one.header)) == 0 && one.required:
			return m.mismatch(fmt.Errorf("the header %s is missing", one.header))
		case len(h.Values(one.header)) == 1 && value != one.body:
			return m.mismatch(fmt.Errorf("the header %s and the body differ", one.header))
		}
	}
	return nil
}

func (m *Message) mismatch(err error) *messageError {
	return &messageError{codeHeaderMismatch, m.ID, "header mismatch: " + err.Error()}
}

// single returns the value of a header that may occur once.
func single(h http.Header, name string) (string, error) {
	if len(h.Values(name)) > 1 {
		return "", fmt.Errorf("the header %s occurs more than once", name)
	}
	return h.Get(name), nil
}

// decodeHeader decodes a value that its client had to encode (MCP 2026-07-28, Streamable
// HTTP, "Value Encoding").
func decodeHeader(name, value string) (string, error) {
	encoded, begins := strings.CutPrefix(value, "=?base64?")
	encoded, ends := strings.CutSuffix(encoded, "?=")
	if !begins || !ends || name != nameHeader {
		return value, nil
	}
	text, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return "", fmt.Errorf("the header %s is not valid Base64", name)
	}
	return string(text), nil
}
