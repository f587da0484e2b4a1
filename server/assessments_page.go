package server

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/supplier"
	"accessbroker.internal/server/ui"
)

// The pages of suppliers: the list with what waits for an assessment, and one supplier with
// the forms of its assessors and sponsors.

type suppliersPage struct {
	Suppliers []supplierView
}

type supplierView struct {
	api.Supplier
	Display                      string
	Ended, EndsSoon              bool // the contract
	Assessed                     bool
	MayAssess, MayAsk, MayDecide bool
}

type supplierPage struct {
	supplierView
	Here         string
	Done, Failed string
	LogInAgain   bool
	Form         form
	Tiers        []string
	LatestValid  string // of the form's date fields, "2026-12-31"
	LatestUntil  string
	Tomorrow     string
}

// soon is how long before its end a contract is shown as ending.
const soon = 30 * 24 * time.Hour

func (s *Server) viewSupplier(c *call, one *supplier.State) supplierView {
	return supplierView{
		Supplier: toSupplier(one, c.now), Display: one.DisplayName(), Ended: !c.now.Before(one.Ends), EndsSoon: one.Live(c.now) && one.Ends.Sub(c.now) <= soon,
		Assessed: one.Assessed(c.now), MayAssess: one.MayAssess, MayAsk: one.MayAsk, MayDecide: one.MayDecide,
	}
}

// suppliersPage lists the suppliers.
func (s *Server) suppliersPage(c *call) (reply, error) {
	if err := c.asReader(); err != nil {
		return reply{}, err
	}
	list, err := s.cfg.Suppliers.List(c.r.Context(), c.caller())
	if err != nil {
		return reply{}, err
	}
	var p suppliersPage
	for _, one := range list {
		p.Suppliers = append(p.Suppliers, s.viewSupplier(c, one))
	}
	return c.page("suppliers", "Suppliers", "suppliers", p)
}

var supplierDone = map[string]string{
	"assessed": "Your assessment is recorded. Requests that waited for it continue.", "asked": "The extension waits for the decision of another person.",
	"approved": "The contract is extended.", "denied": "The extension is denied.",
}

// supplierPage shows one supplier.
func (s *Server) supplierPage(c *call) (reply, error) {
	if err := c.asReader(); err != nil {
		return reply{}, err
	}
	return s.showSupplier(c, http.StatusOK, supplierPage{Done: supplierDone[c.r.URL.Query().Get("done")]})
}

func (s *Server) showSupplier(c *call, status int, p supplierPage) (reply, error) {
	one, err := s.cfg.Suppliers.Get(c.r.Context(), c.caller(), c.r.PathValue("name"))
	if err != nil {
		return reply{}, err
	}
	p.supplierView, p.Here = s.viewSupplier(c, one), s.to("/ui/assessments/"+url.PathEscape(one.Name))
	for tier := broker.TierLow; tier <= broker.TierCritical; tier++ {
		p.Tiers = append(p.Tiers, tier.String())
	}
	p.Tomorrow = c.now.AddDate(0, 0, 1).Format(time.DateOnly)
	p.LatestValid, p.LatestUntil = c.now.AddDate(3, 0, 0).Format(time.DateOnly), one.Supplier.Ends.Add(supplier.MaxExtension).Format(time.DateOnly)
	return c.pageOf(status, ui.Page{Name: "supplier", Title: p.Display, Tab: "suppliers", Data: p})
}

// changeSupplier handles the forms of a supplier's page.
func (s *Server) changeSupplier(c *call) (reply, error) {
	done, err := s.carryOutOnSupplier(c)
	if err == nil {
		return c.redirect(s.to("/ui/assessments/" + url.PathEscape(c.r.PathValue("name")) + "?done=" + done))
	}
	m := errorRowOf(err)
	if m.fault == serverFault || m.status == http.StatusUnauthorized {
		return reply{}, err
	}
	problem := c.problemOf(err)
	p := supplierPage{Failed: strings.Join(append([]string{problem.Detail}, problem.Reasons...), " "), LogInAgain: errors.Is(err, broker.ErrLoginStale), Form: c.form}
	answer, rendering := s.showSupplier(c, m.status, p)
	answer.code = problem.Code
	return answer, rendering
}

// carryOutOnSupplier performs the action of a form.
func (s *Server) carryOutOnSupplier(c *call) (done string, err error) {
	ctx, name, do := c.r.Context(), c.r.PathValue("name"), c.form.get("do")
	switch do {
	case "assess":
		in, err := c.formAssessing()
		if err == nil {
			in.Signature, in.Salt, err = c.signed("assess " + name)
		}
		if err != nil {
			return "", err
		}
		return "assessed", c.freshly(func(caller broker.Caller) error {
			_, err := s.cfg.Suppliers.Assess(ctx, caller, in)
			return err
		})
	case "extend":
		until, err := lastDay(c.form.get("until"))
		if err != nil {
			return "", err
		}
		return "asked", c.freshly(func(caller broker.Caller) error {
			_, err := s.cfg.Suppliers.AskExtension(ctx, caller, name, until, c.text("reason"))
			return err
		})
	case "approve", "deny":
		return map[string]string{"approve": "approved", "deny": "denied"}[do], c.freshly(func(caller broker.Caller) error {
			_, err := s.cfg.Suppliers.DecideExtension(ctx, caller, name, c.form.get("extension"), do == "approve", c.text("comment"))
			return err
		})
	}
	return "", refuse(broker.ErrInvalidRequest, "the form names no action")
}

// formAssessing reads an assessment from a form.
func (c *call) formAssessing() (in supplier.Assessing, err error) {
	in = supplier.Assessing{Supplier: c.r.PathValue("name"), Evidence: strings.TrimSpace(c.form.get("evidence"))}
	if in.Digest, err = parseDigest(c.form.get("digest")); err != nil {
		return in, err
	}
	if in.Tier, err = broker.ParseTier(c.form.get("risk")); err != nil {
		return in, refuse(broker.ErrInvalidRequest, "choose a risk: low, medium, high or critical")
	}
	if in.ValidUntil, err = lastDay(c.form.get("valid_until")); err != nil {
		return in, err
	}
	questions, err := strconv.Atoi(c.form.get("questions"))
	if err != nil || questions < 0 || questions > broker.MaxQuestions {
		return in, refuse(broker.ErrInvalidRequest, "the form is incomplete: load the page again")
	}
	for i := range questions {
		in.Answers = append(in.Answers, c.text("answer."+strconv.Itoa(i)))
	}
	return in, nil
}

// lastDay reads a day, and returns the end of it in UTC.
func lastDay(text string) (time.Time, error) {
	t, err := time.Parse(time.DateOnly, strings.TrimSpace(text))
	if err != nil {
		return t, refuse(broker.ErrInvalidTTL, "write a day such as 2026-12-31")
	}
	return t.AddDate(0, 0, 1), nil
}

// signAssessment returns the options for signing an assessment.
func (s *Server) signAssessment(c *call) (reply, error) {
	if s.cfg.Passkeys == nil {
		return reply{}, errNoPasskeys
	}
	in, err := c.formAssessing()
	if err != nil {
		return reply{}, err
	}
	var signing *broker.Signing
	err = c.freshly(func(caller broker.Caller) (err error) {
		signing, err = s.cfg.Suppliers.PrepareAssess(c.r.Context(), caller, in)
		return err
	})
	if err != nil {
		return reply{}, err
	}
	return c.toSign("assess "+in.Supplier, signing)
}
