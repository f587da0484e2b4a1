package server

import (
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/supplier"
)

// listSuppliers lists the suppliers that the caller may see (GET /v1/suppliers).
func (s *Server) listSuppliers(c *call) (reply, error) {
	list, err := s.cfg.Suppliers.List(c.r.Context(), c.caller())
	if err != nil {
		return reply{}, err
	}
	out := api.SupplierList{Suppliers: []api.Supplier{}}
	for _, one := range list {
		out.Suppliers = append(out.Suppliers, toSupplier(one, c.now))
	}
	return ok(out)
}

// getSupplier returns a supplier (GET /v1/suppliers/{name}).
func (s *Server) getSupplier(c *call) (reply, error) {
	one, err := s.cfg.Suppliers.Get(c.r.Context(), c.caller(), c.r.PathValue("name"))
	if err != nil {
		return reply{}, err
	}
	return ok(toSupplier(one, c.now))
}

// listAssessments lists the latest assessments (GET /v1/assessments).
func (s *Server) listAssessments(c *call) (reply, error) {
	list, err := s.cfg.Suppliers.List(c.r.Context(), c.caller())
	if err != nil {
		return reply{}, err
	}
	out := api.AssessmentList{Assessments: []api.Assessment{}}
	for _, one := range list {
		if one.Assessment != nil {
			out.Assessments = append(out.Assessments, *toAssessment(one.Assessment, c.now))
		}
	}
	return ok(out)
}

// assess records an assessment (POST /v1/assessments).
func (s *Server) assess(c *call, body api.Assessing) (reply, error) {
	in, err := assessingOf(body)
	if err != nil {
		return reply{}, err
	}
	var a *broker.Assessment
	err = c.freshly(func(caller broker.Caller) (err error) {
		a, err = s.cfg.Suppliers.Assess(c.r.Context(), caller, in)
		return err
	})
	if err != nil {
		return reply{}, err
	}
	return c.created("/v1/suppliers/"+string(a.Supplier), toAssessment(a, c.now))
}

func assessingOf(body api.Assessing) (in supplier.Assessing, err error) {
	in = supplier.Assessing{Supplier: body.Supplier, ValidUntil: body.ValidUntil, Evidence: body.Evidence, Answers: body.Answers}
	if in.Digest, err = parseDigest(body.Digest); err != nil {
		return in, err
	}
	if in.Tier, err = broker.ParseTier(body.Risk); err != nil {
		return in, refuse(broker.ErrInvalidRequest, "risk: "+err.Error())
	}
	return in, nil
}

// askExtension files a sponsor's request (POST /v1/suppliers/{name}/extensions).
func (s *Server) askExtension(c *call, body api.ExtensionAsk) (reply, error) {
	var x *broker.Extension
	err := c.freshly(func(caller broker.Caller) (err error) {
		x, err = s.cfg.Suppliers.AskExtension(c.r.Context(), caller, c.r.PathValue("name"), body.Until, body.Reason)
		return err
	})
	if err != nil {
		return reply{}, err
	}
	return c.created("/v1/suppliers/"+string(x.Supplier), toExtension(x))
}

// decideExtension decides on an extension (POST /v1/suppliers/{name}/extensions/{id}).
func (s *Server) decideExtension(c *call, body api.ExtensionDecision) (reply, error) {
	if body.Decision != api.Approve && body.Decision != api.Deny {
		return reply{}, refuse(broker.ErrInvalidRequest, "decision is approve or deny")
	}
	var x *broker.Extension
	err := c.freshly(func(caller broker.Caller) (err error) {
		x, err = s.cfg.Suppliers.DecideExtension(c.r.Context(), caller, c.r.PathValue("name"), c.r.PathValue("id"), body.Decision == api.Approve, body.Comment)
		return err
	})
	if err != nil {
		return reply{}, err
	}
	return ok(toExtension(x))
}

// freshly runs a decision of a person. If it depends on claims that are too old, it
// refreshes them at the provider and runs the decision again.
func (c *call) freshly(decide func(broker.Caller) error) error {
	_, err := c.asApprover(func(caller broker.Caller) (*broker.Request, error) { return nil, decide(caller) })
	return err
}

// parseDigest reads the digest of a supplier.
func parseDigest(text string) (digest audit.Digest, err error) {
	if digest.UnmarshalText([]byte(text)) != nil {
		return audit.Digest{}, refuse(broker.ErrInvalidRequest, "digest must be the digest of the supplier that you saw, 64 lower-case hexadecimal digits")
	}
	return digest, nil
}

func toSupplier(s *supplier.State, now time.Time) api.Supplier {
	out := api.Supplier{
		Name: s.Name, Title: s.Title, Sponsor: s.Sponsor, Digest: hexDigest(s.Digest), Live: s.Live(now), StartsAt: utc(s.Starts), EndsAt: utc(s.Ends),
		Ceiling: s.Ceiling, Assessors: s.Assessors, Signed: s.Signed, Questions: s.Questions, Waiting: s.Waiting,
	}
	if s.Assessment != nil {
		out.Assessment = toAssessment(s.Assessment, now)
	}
	if s.Extension != nil {
		x := toExtension(s.Extension)
		out.Extension = &x
	}
	return out
}

func toAssessment(a *broker.Assessment, now time.Time) *api.Assessment {
	out := &api.Assessment{
		ID: a.ID, Supplier: string(a.Supplier), Risk: a.Tier.String(), By: a.By, At: utc(a.At), ValidUntil: utc(a.ValidUntil),
		Valid: now.Before(a.ValidUntil), Evidence: a.Evidence, Signed: a.Signed,
	}
	for i, q := range a.Questions {
		out.Answers = append(out.Answers, api.Answer{Question: q, Answer: a.Answers[i]})
	}
	return out
}

func toExtension(x *broker.Extension) api.Extension {
	return api.Extension{
		ID: x.ID, From: utc(x.From), Until: utc(x.Until), Reason: x.Reason, AskedBy: x.AskedBy, AskedAt: utc(x.AskedAt),
		State: string(x.Decision), DecidedBy: x.DecidedBy, DecidedAt: utc(x.DecidedAt), Comment: x.Comment,
	}
}
