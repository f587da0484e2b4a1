package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
)

func (a *app) suppliersCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "suppliers",
		Short: "List suppliers with their contracts and assessments, and extend contracts",
		Long: `suppliers lists the suppliers that you sponsor or assess; auditors and operators
see all of them. A sponsor asks for an extension of a contract with "suppliers
extend", and another person decides with "suppliers approve" or "suppliers
deny".`,
		Example: `  broker suppliers
  broker suppliers extend acme-data --until 2027-01-31 --why "the migration takes longer"
  broker suppliers approve acme-data`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withPerson(c.Context(), func(ctx context.Context, client *api.Client) error {
				list, err := api.Suppliers{Client: client}.List(ctx)
				if err != nil {
					return err
				}
				return a.printTable(list, func(w io.Writer) { writeSuppliers(w, list) })
			})
		},
	}
	a.client.add(c)
	c.AddCommand(a.extendCommand(), a.extensionCommand("approve"), a.extensionCommand("deny"))
	return c
}

func writeSuppliers(w io.Writer, list *api.SupplierList) {
	if len(list.Suppliers) == 0 {
		fmt.Fprintln(w, "you sponsor or assess no supplier")
		return
	}
	fmt.Fprintln(w, "SUPPLIER\tCONTRACT\tENDS\tASSESSMENT\tWAITING\tSPONSOR")
	for _, s := range list.Suppliers {
		contract, assessment := "ended", "none"
		switch {
		case s.Live:
			contract = "in force"
		case s.StartsAt.After(time.Now()):
			contract = "not begun"
		}
		if x := s.Extension; x != nil && x.State == "pending" {
			contract += ", extension asked"
		}
		if s.Assessment != nil {
			assessment = s.Assessment.Risk
			if !s.Assessment.Valid {
				assessment += ", over"
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", s.Name, contract, s.EndsAt.Format("2006-01-02 15:04Z"), assessment, s.Waiting, s.Sponsor)
	}
}

func (a *app) extendCommand() *cobra.Command {
	var until, why string
	c := &cobra.Command{
		Use:   "extend SUPPLIER",
		Short: "Ask to let a contract run longer; another person decides",
		Args:  oneSupplier,
		RunE: func(c *cobra.Command, args []string) error {
			end, err := endOfDay(until)
			if err != nil {
				return usage("--until: %v", err)
			}
			return a.withPerson(c.Context(), func(ctx context.Context, client *api.Client) error {
				x, err := api.Suppliers{Client: client}.AskExtension(ctx, args[0], api.ExtensionAsk{Until: end, Reason: why})
				if err != nil {
					return err
				}
				return a.print(x, func(w io.Writer) { writeExtension(w, args[0], x) })
			})
		},
	}
	a.client.add(c)
	c.Flags().StringVar(&until, "until", "", "the last day of the contract, such as 2027-01-31")
	addWhy(c, &why)
	return c
}

// extensionCommand approves or denies the extension that waits.
func (a *app) extensionCommand(decision string) *cobra.Command {
	var comment string
	c := &cobra.Command{
		Use:   decision + " SUPPLIER",
		Short: map[string]string{"approve": "Approve the extension of a contract", "deny": "Deny the extension of a contract"}[decision],
		Args:  oneSupplier,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withPerson(c.Context(), func(ctx context.Context, client *api.Client) error {
				suppliers := api.Suppliers{Client: client}
				s, err := suppliers.Get(ctx, args[0])
				if err != nil {
					return err
				}
				if s.Extension == nil || s.Extension.State != "pending" {
					return fmt.Errorf("no extension of the contract with %s waits for a decision", s.Name)
				}
				fmt.Fprintf(a.err, "%s asks to let the contract run until %s: %s\n", s.Extension.AskedBy, s.Extension.Until.Format("2006-01-02 15:04Z"), printable(s.Extension.Reason))
				x, err := suppliers.DecideExtension(ctx, args[0], s.Extension.ID, api.ExtensionDecision{Decision: decision, Comment: comment})
				if err != nil {
					return err
				}
				return a.print(x, func(w io.Writer) { writeExtension(w, args[0], x) })
			})
		},
	}
	a.client.add(c)
	c.Flags().StringVar(&comment, "comment", "", "a comment, which the sponsor reads; required to deny")
	return c
}

func writeExtension(w io.Writer, supplier string, x *api.Extension) {
	fmt.Fprintf(w, "supplier\t%s\nextension\t%s\nuntil\t%s\nstate\t%s\n", supplier, x.ID, x.Until.Format("2006-01-02 15:04Z"), x.State)
}

func oneSupplier(c *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] == "" || strings.ContainsAny(args[0], "/ ") {
		return usage("%s takes the name of a supplier; see broker suppliers", c.CommandPath())
	}
	return nil
}

// endOfDay reads a time, or a day, and then returns its end in UTC.
func endOfDay(text string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t.UTC(), nil
	}
	t, err := time.Parse(time.DateOnly, text)
	if err != nil {
		return t, fmt.Errorf("%q: write a day such as 2027-01-31", text)
	}
	return t.AddDate(0, 0, 1), nil
}

func (a *app) assessCommand() *cobra.Command {
	var risk, evidence, until string
	var answers []string
	c := &cobra.Command{
		Use:   "assess SUPPLIER",
		Short: "Assess the risk of a supplier",
		Long: `assess asks the operator's questions about a supplier and records your
assessment. Requests that waited for it continue. It serves later requests until
it ends. --answer answers the questions in their order. An assessment that needs
a passkey is made in the browser.`,
		Example: `  broker assess acme-data --risk medium --evidence https://docs.acme.test/acme.pdf --until 2027-06-30
  broker assess acme-data --risk low --evidence sha256:… --until 2027-06-30 --answer "In Frankfurt"`,
		Args: oneSupplier,
		RunE: func(c *cobra.Command, args []string) error {
			end, err := endOfDay(until)
			if err != nil {
				return usage("--until: %v", err)
			}
			return a.withPerson(c.Context(), func(ctx context.Context, client *api.Client) error {
				s, err := api.Suppliers{Client: client}.Get(ctx, args[0])
				if err != nil {
					return err
				}
				if answers, err = a.answers(ctx, s.Questions, answers); err != nil {
					return err
				}
				done, err := api.Suppliers{Client: client}.Assess(ctx, api.Assessing{Supplier: s.Name, Digest: s.Digest, Risk: risk, ValidUntil: end, Evidence: evidence, Answers: answers})
				if err != nil {
					return err
				}
				return a.print(done, func(w io.Writer) {
					fmt.Fprintf(w, "supplier\t%s\nassessment\t%s\nrisk\t%s\nvalid until\t%s\n", done.Supplier, done.ID, done.Risk, done.ValidUntil.Format("2006-01-02 15:04Z"))
				})
			})
		},
	}
	a.client.add(c)
	c.Flags().StringVar(&risk, "risk", "", "low, medium, high or critical")
	completes(c, "risk", oneOf("low", "medium", "high", "critical"))
	c.Flags().StringVar(&evidence, "evidence", "", "an https link to the documents, or sha256: and their hash")
	c.Flags().StringVar(&until, "until", "", "the last day on which the assessment is valid, such as 2027-06-30")
	c.Flags().StringArrayVar(&answers, "answer", nil, "the answer to the next question; repeatable")
	return c
}

// answers asks the questions for which there is no answer yet.
func (a *app) answers(ctx context.Context, questions, given []string) ([]string, error) {
	if len(given) > len(questions) {
		return nil, usage("there are %d questions, and %d answers", len(questions), len(given))
	}
	in := bufio.NewReader(a.in)
	for _, q := range questions[len(given):] {
		fmt.Fprintf(a.err, "%s\n> ", printable(q))
		line, err := in.ReadString('\n')
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if line = strings.TrimSpace(line); line == "" {
			return nil, usage("the question needs an answer: %s (%v)", printable(q), err)
		}
		given = append(given, line)
	}
	return given, nil
}
