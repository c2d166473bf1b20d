"""What a person looks at: contact sheets, histograms, a job while it runs."""
