"""The least IAM permissions that the AWS provider needs, as `codexctl provider policy aws` prints.

A file beside the provider because it is a document, kept in step with the calls by a test.
"""

from __future__ import annotations

import json

READING = (
    "ec2:DescribeImages",
    "ec2:DescribeInstanceTypeOfferings",
    "ec2:DescribeInstanceTypes",
    "ec2:DescribeInstances",
    "ec2:DescribeKeyPairs",
    "ec2:DescribeRegions",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSpotPriceHistory",
    "ec2:DescribeSubnets",
    "ec2:DescribeVolumes",
    "ec2:DescribeVpcs",
    "pricing:GetProducts",
    "ssm:GetParameter",
    "sts:GetCallerIdentity",
)
MAKING = (
    "ec2:CreateSecurityGroup",
    "ec2:ImportKeyPair",
    "ec2:RunInstances",
)
OWN = (
    "ec2:AuthorizeSecurityGroupIngress",
    "ec2:DeleteKeyPair",
    "ec2:DeleteSecurityGroup",
    "ec2:DeleteVolume",
    "ec2:GetConsoleOutput",
    "ec2:StartInstances",
    "ec2:StopInstances",
    "ec2:TerminateInstances",
)
_TAGGED_WHEN_MADE = ("RunInstances", "CreateSecurityGroup", "ImportKeyPair")


def document() -> str:
    """JSON, for an IAM policy: what exists is touched only where it carries codexctl's tag."""
    own = {"StringEquals": {"aws:ResourceTag/codexctl": "1"}}
    statements = [
        {"Sid": "Look", "Effect": "Allow", "Action": list(READING), "Resource": "*"},
        {"Sid": "Make", "Effect": "Allow", "Action": list(MAKING), "Resource": "*"},
        {
            "Sid": "TagWhatIsMade",
            "Effect": "Allow",
            "Action": "ec2:CreateTags",
            "Resource": "*",
            "Condition": {"StringEquals": {"ec2:CreateAction": list(_TAGGED_WHEN_MADE)}},
        },
        {
            "Sid": "ChangeAndEndOwn",
            "Effect": "Allow",
            "Action": [*OWN, "ec2:CreateTags"],
            "Resource": "*",
            "Condition": own,
        },
        {
            "Sid": "FirstUseOfSpot",
            "Effect": "Allow",
            "Action": "iam:CreateServiceLinkedRole",
            "Resource": "arn:aws:iam::*:role/aws-service-role/spot.amazonaws.com/*",
            "Condition": {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}},
        },
    ]
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2) + "\n"
