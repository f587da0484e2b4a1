package broker

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
)

// A Secret is what a credential consists of, by field name ("token",
// "password"). It can't be printed, logged or marshalled by accident; Reveal
// is the one way out, and only package server calls it.
type Secret struct{ fields map[string]string }

// NewSecret takes the fields over.
func NewSecret(fields map[string]string) Secret { return Secret{maps.Clone(fields)} }

// Reveal gives a copy of the fields.
func (s Secret) Reveal() map[string]string { return maps.Clone(s.fields) }

const redacted = "[secret]"

// Format prints "[secret]", whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue logs "[secret]".
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText fails: a secret is revealed on purpose or not at all.
func (Secret) MarshalText() ([]byte, error) { return nil, errSecret }

// MarshalJSON fails, as MarshalText does.
func (Secret) MarshalJSON() ([]byte, error) { return nil, errSecret }

// GobEncode fails, as MarshalText does.
func (Secret) GobEncode() ([]byte, error) { return nil, errSecret }

var errSecret = errors.New("a secret can't be marshalled")
