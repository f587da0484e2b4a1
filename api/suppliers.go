package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// A Supplier is another organization whose workloads or people may have access.
type Supplier struct {
	Name       string      `json:"name"`
	Title      string      `json:"title,omitempty"` // for people
	Sponsor    string      `json:"sponsor"`         // a group or a person
	Digest     string      `json:"digest"`          // of its entry in suppliers.yaml
	Live       bool        `json:"live"`            // the contract is in force
	StartsAt   time.Time   `json:"starts_at,omitzero"`
	EndsAt     time.Time   `json:"ends_at"` // of the contract, or of its extension
	Ceiling    []string    `json:"ceiling"` // the entitlements that it may ever have
	Assessors  string      `json:"assessors,omitempty"`
	Signed     bool        `json:"signed,omitempty"` // an assessment needs a passkey signature
	Questions  []string    `json:"questions,omitempty"`
	Waiting    int         `json:"waiting,omitempty"` // requests that wait for the assessment
	Assessment *Assessment `json:"assessment,omitempty"`
	Extension  *Extension  `json:"extension,omitempty"`
}

// An Assessment is the risk assessment of a supplier.
type Assessment struct {
	ID         string    `json:"id"`
	Supplier   string    `json:"supplier"`
	Risk       string    `json:"risk"` // low, medium, high, critical
	By         string    `json:"by"`
	At         time.Time `json:"at"`
	ValidUntil time.Time `json:"valid_until"`
	Valid      bool      `json:"valid"`
	Evidence   string    `json:"evidence"` // a link, or a hash as sha256:…
	Signed     bool      `json:"signed,omitempty"`
	Answers    []Answer  `json:"answers,omitempty"`
}

// An Answer is the answer to a question of an assessment.
type Answer struct {
	Question string `json:"question"`
	Answer   string `json:"answer"`
}

// An Assessing is the body of a new assessment.
type Assessing struct {
	Supplier   string    `json:"supplier"`
	Digest     string    `json:"digest"` // of the supplier, as the person saw it
	Risk       string    `json:"risk"`
	ValidUntil time.Time `json:"valid_until"`
	Evidence   string    `json:"evidence"`
	Answers    []string  `json:"answers,omitempty"` // in the order of the questions
}

// An Extension lets a contract run longer, until suppliers.yaml has its new end.
type Extension struct {
	ID        string    `json:"id"`
	From      time.Time `json:"from"` // the end of the contract that it extends
	Until     time.Time `json:"until"`
	Reason    string    `json:"reason"`
	AskedBy   string    `json:"asked_by"`
	AskedAt   time.Time `json:"asked_at"`
	State     string    `json:"state"` // pending, approved, denied
	DecidedBy string    `json:"decided_by,omitempty"`
	DecidedAt time.Time `json:"decided_at,omitzero"`
	Comment   string    `json:"comment,omitempty"`
}

// An ExtensionAsk is the body of a sponsor's request for an extension.
type ExtensionAsk struct {
	Until  time.Time `json:"until"`
	Reason string    `json:"reason"`
}

// An ExtensionDecision is the body of a decision on an extension.
type ExtensionDecision struct {
	Decision string `json:"decision"` // approve, deny
	Comment  string `json:"comment,omitempty"`
}

// A SupplierList lists suppliers by name.
type SupplierList struct {
	Suppliers []Supplier `json:"suppliers"`
}

// An AssessmentList lists the latest assessments of suppliers.
type AssessmentList struct {
	Assessments []Assessment `json:"assessments"`
}

// Suppliers are the calls about suppliers.
type Suppliers struct{ Client *Client }

// List lists the suppliers that the caller may see.
func (s Suppliers) List(ctx context.Context) (*SupplierList, error) {
	return fetch[SupplierList](ctx, s.Client, call{method: http.MethodGet, path: "/v1/suppliers", retry: true})
}

// Get returns a supplier.
func (s Suppliers) Get(ctx context.Context, name string) (*Supplier, error) {
	return fetch[Supplier](ctx, s.Client, call{method: http.MethodGet, path: "/v1/suppliers/" + url.PathEscape(name), retry: true})
}

// Assessments lists the latest assessments of the suppliers that the caller may see.
func (s Suppliers) Assessments(ctx context.Context) (*AssessmentList, error) {
	return fetch[AssessmentList](ctx, s.Client, call{method: http.MethodGet, path: "/v1/assessments", retry: true})
}

// Assess records an assessment of a supplier. It needs a person's session.
func (s Suppliers) Assess(ctx context.Context, a Assessing) (*Assessment, error) {
	return fetch[Assessment](ctx, s.Client, call{method: http.MethodPost, path: "/v1/assessments", body: a})
}

// AskExtension asks to let a contract run longer. It needs the session of its sponsor.
func (s Suppliers) AskExtension(ctx context.Context, supplier string, ask ExtensionAsk) (*Extension, error) {
	return fetch[Extension](ctx, s.Client, call{method: http.MethodPost, path: "/v1/suppliers/" + url.PathEscape(supplier) + "/extensions", body: ask})
}

// DecideExtension decides on an extension. It needs another person's session.
func (s Suppliers) DecideExtension(ctx context.Context, supplier, id string, d ExtensionDecision) (*Extension, error) {
	return fetch[Extension](ctx, s.Client, call{method: http.MethodPost, path: "/v1/suppliers/" + url.PathEscape(supplier) + "/extensions/" + url.PathEscape(id), body: d})
}
