package scim

import (
	"errors"
	"fmt"
	"net/http"
)

// An Error is a refusal in the form of RFC 7644, section 3.12. Its detail contains no
// value of a resource.
type Error struct {
	Status int
	Type   string // the scimType; may be empty
	Detail string
}

func (e *Error) Error() string {
	if e.Type == "" {
		return e.Detail
	}
	return e.Type + ": " + e.Detail
}

// The values of scimType (RFC 7644, table 9).
const (
	typeInvalidFilter = "invalidFilter"
	typeTooMany       = "tooMany"
	typeUniqueness    = "uniqueness"
	typeMutability    = "mutability"
	typeInvalidSyntax = "invalidSyntax"
	typeInvalidPath   = "invalidPath"
	typeNoTarget      = "noTarget"
	typeInvalidValue  = "invalidValue"
)

func bad(scimType, format string, args ...any) error {
	return &Error{Status: http.StatusBadRequest, Type: scimType, Detail: fmt.Sprintf(format, args...)}
}

func refuse(status int, format string, args ...any) error {
	return &Error{Status: status, Detail: fmt.Sprintf(format, args...)}
}

// isType reports whether an error has this scimType.
func isType(err error, scimType string) bool {
	var e *Error
	return errors.As(err, &e) && e.Type == scimType
}
