module mailhog

go 1.24

tool github.com/mailhog/MailHog

require github.com/mailhog/MailHog v1.0.1

require github.com/ian-kent/linkio v0.0.0-20170807205755-97566b872887
